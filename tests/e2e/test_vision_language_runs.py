"""Runs on vision-language checkpoints: what is trained, and what is saved beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from dpo_runs import dpo_bench
from lora_runs import call
from resume_runs import differences, run, settings_of
from vision_language_models import save_vision_language_model
from workbench import make_tokenizer
from zero_runs import on_ranks, written

STEPS = 3
TYPES = ("qwen2_5_vl", "gemma3", "mllama")
PIXELS = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A workbench with a checkpoint of each type in float32, a tokenizer and a legacy template file in each."""
    bench = dpo_bench(tmp_path_factory.mktemp("vision"))
    for model_type in TYPES:
        save_vision_language_model(model_type, bench / model_type)
        make_tokenizer(bench / model_type)
        (bench / model_type / "chat_template.json").write_text('{"chat_template": "another one"}')
    return bench


def settings(bench, model_type, name, *, stage="sft", dtype="fp32", **changes):
    changes = {"train": {"max_steps": STEPS}, "model": {"path": str(bench / model_type), "dtype": dtype}, **changes}
    made = settings_of(bench, "sft", name, **changes)
    if stage == "dpo":
        made["stage"] = "dpo"
        made["data"] |= {"path": str(bench / "pairs.json"), "eval_path": None, "max_length": 96}
        made["train"]["eval_steps"] = None
    return made


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def is_tower(name: str) -> bool:
    return any(part in name for part in ("visual", "vision", "multi_modal", "cross_attn", "layers.1."))


def without_dtypes(config):
    return {
        key: without_dtypes(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "dtype"
    }


@pytest.mark.parametrize("model_type", TYPES)
def test_the_tower_is_saved_unchanged_in_another_dtype_than_the_run(bench, model_type, capsys):
    name = f"{model_type}-bf16"
    assert run(bench, settings(bench, model_type, name, dtype="bf16", train={"max_steps": 1})) == 0
    said = capsys.readouterr().out
    base, final = bench / model_type, bench / name / "final"
    before, after = weights(base), weights(final)
    assert before.keys() == after.keys()
    tower = {
        name for name in before if before[name].dtype == after[name].dtype and torch.equal(before[name], after[name])
    }
    assert {name for name in before if after[name].dtype == torch.float32} == tower
    assert tower
    assert all(is_tower(name) for name in tower)
    count = sum(before[name].numel() for name in tower)
    assert f"vision tower            frozen ({count:,} parameters), saved unchanged" in said
    assert "loads with AutoModelFor" in said
    configs = [without_dtypes(json.loads((place / "config.json").read_text())) for place in (base, final)]
    assert configs[0] == configs[1]
    assert (final / "preprocessor_config.json").read_bytes() == (base / "preprocessor_config.json").read_bytes()
    assert not (final / "chat_template.json").exists()


def test_the_final_model_sees_images_as_before(bench):
    assert run(bench, settings(bench, "gemma3", "gemma3-images")) == 0
    features = []
    for directory in (bench / "gemma3", bench / "gemma3-images" / "final"):
        model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            features.append(model.get_image_features(PIXELS).pooler_output)
            ids = torch.tensor([[5, 290, 290, 290, 290, 7]])
            ids[ids == 290] = model.config.image_token_id
            logits = model(input_ids=ids, pixel_values=PIXELS, token_type_ids=(ids == 290).long()).logits
        assert logits.isfinite().all()
    assert torch.equal(*features)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_resumed_run_is_that_without_a_break(bench, stage):
    changes = {"stage": stage, "dtype": "bf16"}
    assert run(bench, settings(bench, "qwen2_5_vl", f"{stage}-through", **changes)) == 0
    resumed = settings(bench, "qwen2_5_vl", f"{stage}-resumed", **changes)
    assert run(bench, resumed, "--resume", str(bench / f"{stage}-through" / "checkpoint-1")) == 0
    assert differences(bench / f"{stage}-through", bench / f"{stage}-resumed", steps=STEPS) == []


def test_generate_answers_without_an_image(bench, capsys):
    save_vision_language_model("llama4", bench / "llama4")
    make_tokenizer(bench / "llama4")
    capsys.readouterr()
    for model_type in (*TYPES, "llama4"):
        assert call("generate", bench / model_type, "--prompt", "the cat", "--max-new-tokens", "3", "--json") == 0
        assert json.loads(capsys.readouterr().out)["tokens"] <= 3


@pytest.mark.slow
def test_zero_saves_the_tower_unchanged(bench):
    runs = []
    for stage in (2, 3):
        made = settings(bench, "mllama", f"mllama-zero{stage}", dtype="bf16", train={"max_steps": 1})
        runs.append(["run", written(bench, made, name="deepspeed", zero_stage=stage)])
    assert on_ranks(bench, runs) == [[0, 0], [0, 0]]
    before = weights(bench / "mllama")
    for stage in (2, 3):
        after = weights(bench / f"mllama-zero{stage}" / "final")
        assert before.keys() == after.keys()
        kept = {name for name in before if after[name].dtype == torch.float32}
        assert kept
        assert all(torch.equal(before[name], after[name]) for name in kept)
