"""Runs that add tokens and resize embeddings: in full and with LoRA, saved, merged, resumed, generated with."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bumblecore_core.toolkit.adapters import load_model
from lora_runs import call, lora_bench, lora_settings, run
from workbench import write_config

NEW = ["<tool>", "</tool>"]
ROWS, RESIZED = 300, 304


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def bench(request, tmp_path_factory):
    bench = lora_bench(tmp_path_factory.mktemp("new_tokens"), tie_word_embeddings=request.param)
    rows = json.loads((bench / "chat.json").read_text())
    for row in rows:
        row["output"] = f"<tool>{row['output']}</tool>"
    (bench / "chat.json").write_text(json.dumps(rows))
    return bench


def settings(bench, name, *, lora, **model):
    made = lora_settings(bench, name, max_steps=4, micro_batch_size=2, gradient_accumulation_steps=2)
    if not lora:
        made["adapter"] = None
    made["model"] |= {"add_tokens": NEW, "resize_embeddings": True, "resize_multiple_of": 8, **model}
    made["checkpoint"] = {"save_steps": 2}
    return made


def resized_base(bench):
    """The base, resized by transformers and filled by hand."""
    model = AutoModelForCausalLM.from_pretrained(bench / "base")
    means = [end.weight[:ROWS].mean(0) for end in (model.get_input_embeddings(), model.lm_head)]
    model.resize_token_embeddings(RESIZED, mean_resizing=False)
    with torch.no_grad():
        for end, mean in zip((model.get_input_embeddings(), model.lm_head), means, strict=True):
            end.weight[ROWS:] = mean
    return model


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_saved_merged_resumed(bench, lora, capsys):
    name = "lora" if lora else "full"
    assert run(bench, settings(bench, name, lora=lora)) == 0
    assert "2 tokens added; embeddings resized from 300 to 304 rows" in capsys.readouterr().out
    final = bench / name / "final"
    tokenizer = AutoTokenizer.from_pretrained(final)
    ids = tokenizer.convert_tokens_to_ids(NEW)
    assert ids == [ROWS, ROWS + 1]
    base, model = resized_base(bench), load_model(final)
    assert model.config.vocab_size == json.loads((final / "config.json").read_text())["vocab_size"] == RESIZED
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings
    embedding, before = model.get_input_embeddings().weight, base.get_input_embeddings().weight
    assert (embedding[ids] != before[ids]).any(1).all()
    if lora:
        kept = [row for row in range(RESIZED) if row not in ids]
        assert torch.equal(embedding[kept], before[kept])
        twin = PeftModel.from_pretrained(base, final).merge_and_unload()
        tokens = torch.arange(290, RESIZED)[None]
        torch.testing.assert_close(model(input_ids=tokens).logits, twin(input_ids=tokens).logits)
        assert call("merge", final, bench / f"{name}-merged") == 0
        merged = AutoModelForCausalLM.from_pretrained(bench / f"{name}-merged")
        torch.testing.assert_close(merged(input_ids=tokens).logits, twin(input_ids=tokens).logits)
        assert merged.config.vocab_size == RESIZED
    again = settings(bench, f"{name}-again", lora=lora)
    shutil.copytree(bench / name, bench / f"{name}-again")
    for part in ("final", "checkpoint-4"):
        shutil.rmtree(bench / f"{name}-again" / part, ignore_errors=True)
    assert run(bench, again) == 0
    assert "checkpoint-2" in capsys.readouterr().out
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    one, other = (load_file(bench / part / "final" / file) for part in (name, f"{name}-again"))
    assert all(torch.equal(one[key], other[key]) for key in one | other)
    assert call("generate", final, "--prompt", "the <tool>", "--max-new-tokens", 3) == 0


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_plan_counts_the_new_rows(bench, lora, capsys):
    config = write_config(bench / "plan.yaml", **settings(bench, "plan", lora=lora))
    assert call("plan", config) == 0
    out = " ".join(capsys.readouterr().out.split())
    if lora:
        assert "2 token embeddings" in out
    else:
        assert f"parameters {resized_base(bench).num_parameters():,}, trainable" in out
    assert "embeddings resized from 300 to 304 rows" in out
    assert "is known only once the weights are there" not in out


def test_without_resizing_the_fix_names_the_option(bench, capsys):
    assert run(bench, settings(bench, "refused", lora=False, resize_embeddings=False)) == 2
    error = capsys.readouterr().err
    assert "BC027" in error
    assert "model.resize_embeddings" in error
