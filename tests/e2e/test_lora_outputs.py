"""What can be done with the output of a LoRA run, and what is said where a run cannot be."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lora_runs import STEPS, by_hand, call, logits_of, lora_bench, lora_settings, make_base, run, settings_of
from resume_runs import differences
from workbench import make_text


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return lora_bench(tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "auto"])
def test_a_merged_model_has_the_adapters_logits(plain, bench, tmp_path, dtype, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    assert call("merge", plain, out, "--dtype", dtype) == 0
    assert ("bfloat16" if dtype == "bf16" else "float32") in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    expected = logits_of(by_hand(bench / "base", plain / "final"))
    room = 0.05 * float(expected.abs().max()) if dtype == "bf16" else 1e-5
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=room)
    assert (
        AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(bench / "base").chat_template
    )
    assert not list(out.glob("adapter*"))
    assert not list(tmp_path.glob(".*"))


def test_parts_trained_in_full_are_merged_with_the_low_rank_ones(bench, tmp_path):
    """With tied embeddings, which stay tied and untouched."""
    from transformers import AutoModelForCausalLM

    case = {"adapter": {"modules_to_save": ["norm", "k_norm"], "target_modules": ["q_proj", "up_proj"]}}
    assert run(bench, settings_of(bench, "in-full", case)) == 0
    assert call("merge", bench / "in-full", tmp_path / "merged") == 0
    adapter = bench / "in-full" / "final"
    saved = load_file(adapter / "adapter_model.safetensors")
    kinds = {name.split(".")[-2] for name in saved if ".lora_" not in name}
    assert kinds == {"norm", "k_norm"}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = load_file(bench / "base" / "model.safetensors")
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert weights.keys() == base.keys()
    assert "lm_head.weight" not in weights
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    changed = {name.split(".")[-2] for name in base if not torch.equal(base[name], weights[name])}
    assert changed == {"norm", "k_norm", "q_proj", "up_proj"}
    torch.testing.assert_close(logits_of(merged), logits_of(by_hand(bench / "base", adapter)), rtol=0, atol=1e-5)


def test_merge_refuses(plain, bench, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.md").write_text("mine")
    for arguments, code in [
        ((plain, tmp_path / "there"), "BC069"),
        ((bench / "base", tmp_path / "new"), "BC064"),
        ((tmp_path / "none", tmp_path / "new"), "BC061"),
        ((tmp_path / "there", tmp_path / "new"), "BC064"),
        ((plain, "/proc/none/new"), "BC042"),
    ]:
        assert call("merge", *arguments) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("BC")]
        assert [line[:5] for line in lines] == [code]
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["notes.md"]
    assert not (tmp_path / "new").exists()


def test_merge_replaces_a_model_only_with_force(plain, tmp_path, capsys):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    (out / "pytorch_model.bin").write_text("an older model")
    assert call("merge", plain, out) == 2
    assert call("merge", plain, out, "--force") == 0
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "notes.md"} <= names
    assert "pytorch_model.bin" not in names


def test_generate_takes_adapters_and_says_where_a_base_is_missing(plain, tmp_path, capsys):
    answers = []
    assert call("merge", plain, tmp_path / "merged") == 0
    capsys.readouterr()
    for model in (plain, plain / "final", plain / f"checkpoint-{STEPS}", tmp_path / "merged"):
        assert call("generate", model, "--prompt", "the cat", "--max-new-tokens", "8") == 0
        answers.append(capsys.readouterr().out)
    assert answers[0]
    assert len(set(answers)) == 1
    shutil.copytree(plain / "final", tmp_path / "moved")
    config = json.loads((tmp_path / "moved" / "adapter_config.json").read_text())
    changed = {**config, "base_model_name_or_path": "/nowhere/base"}
    (tmp_path / "moved" / "adapter_config.json").write_text(json.dumps(changed))
    assert call("generate", tmp_path / "moved", "--prompt", "the cat") == 2
    assert "BC061" in (said := capsys.readouterr().err)
    assert "/nowhere/base" in said


def test_a_later_stage_starts_from_base_and_adapter_together(bench, plain, capsys):
    """Full fine-tuning and another LoRA both begin with the logits that the first run ended with."""
    losses = {}
    assert call("merge", plain, bench / "merged") == 0
    for name, model, adapter in [
        ("full", plain, None),
        ("full-merged", bench / "merged", None),
        ("second", plain / "final", {"name": "lora", "rank": 2}),
    ]:
        settings = lora_settings(bench, f"later-{name}", max_steps=2)
        settings["model"]["path"], settings["adapter"] = str(model), adapter
        settings["checkpoint"] = {"save_steps": 1}
        assert run(bench, settings) == 0
        losses[name] = [entry["loss"] for entry in json.loads((bench / f"later-{name}" / "metrics.json").read_text())]
    assert losses["full"] == losses["full-merged"]
    assert losses["second"][0] == pytest.approx(losses["full"][0], rel=1e-5)
    full, same = (
        load_file(bench / f"later-{name}" / "final" / "model.safetensors") for name in ("full", "full-merged")
    )
    assert all(torch.equal(full[name], same[name]) for name in full)
    second = bench / "later-second"
    config = json.loads((second / "final" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(plain / "final")
    assert call("merge", second, bench / "merged-twice") == 0
    from transformers import AutoModelForCausalLM

    twice = logits_of(AutoModelForCausalLM.from_pretrained(bench / "merged-twice"))
    expected = logits_of(by_hand(bench / "merged", second / "final"))
    torch.testing.assert_close(twice, expected, rtol=1e-5, atol=1e-5)
    shutil.rmtree(second / "final")
    shutil.rmtree(second / "checkpoint-2")
    capsys.readouterr()
    settings = lora_settings(bench, "later-second", max_steps=2, adapter={"rank": 2})
    settings["model"]["path"], settings["checkpoint"] = str(plain / "final"), {"save_steps": 1}
    assert run(bench, settings) == 0
    assert "checkpoint-1, after step 1" in capsys.readouterr().out
    assert json.loads((second / "metrics.json").read_text())[-1]["loss"] == losses["second"][1]


def test_an_adapter_can_go_on(bench, plain):
    settings = lora_settings(bench, "further", max_steps=2)
    settings["adapter"] = {"name": "lora", "path": str(plain)}
    settings["checkpoint"] = {"save_steps": 1, "save_total_limit": None}
    assert run(bench, settings) == 0
    whole = bench / "further"
    shutil.copytree(whole, bench / "kept")
    shutil.rmtree(whole / "final")
    shutil.rmtree(whole / "checkpoint-2")
    assert run(bench, settings) == 0
    assert differences(bench / "kept", whole, 2) == []


# -- errors -----------------------------------------------------------------------------------------------------------


def refused(bench, capsys, settings, *options) -> str:
    capsys.readouterr()
    assert run(bench, settings, *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("BC")]
    assert len(lines) == 1, lines
    return lines[0]


def test_row_31_targets_that_match_nothing_name_the_candidates(bench, capsys):
    settings = lora_settings(bench, "row-31", max_steps=1, adapter={"target_modules": ["c_attn"]})
    line = refused(bench, capsys, settings)
    assert line.startswith(f"BC031 {bench / 'row-31.yaml'}:")
    assert "adapter.target_modules: no module is called 'c_attn'" in line
    assert "q_proj" in line


def test_row_32_targets_that_match_in_part_are_warned_of(bench, capsys):
    settings = lora_settings(bench, "row-32", max_steps=1, adapter={"target_modules": ["q_proj", "c_attn"]})
    assert run(bench, settings) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "BC032 adapter.target_modules: no module is called 'c_attn'" in out


def test_row_33_an_adapter_of_another_base_names_both(bench, plain, capsys):
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(bench / "base")
    config.intermediate_size = 48
    make_base(bench / "other", config, seed=0)
    AutoTokenizer.from_pretrained(bench / "base").save_pretrained(bench / "other")
    settings = lora_settings(bench, "row-33", max_steps=1)
    settings["adapter"] = {"name": "lora", "path": str(plain)}
    settings["model"]["path"] = str(bench / "other")
    line = refused(bench, capsys, settings)
    assert line.startswith("BC033")
    assert str(bench / "base") in line
    assert str(bench / "other") in line
    assert "(4, 64) and must be (4, 48)" in line


def test_conflicts_are_said_with_their_place(bench, capsys):
    for change, said in [
        ({"adapter": {"name": "lora", "path": "x", "rank": 2}}, "rank"),
        ({"adapter": {"name": "lora", "modules_to_save": ["lm_head"]}}, "tie_word_embeddings"),
        ({"stage": "pretrain"}, "random weights"),
    ]:
        settings = {**lora_settings(bench, "conflict", max_steps=1), **change}
        if "stage" in change:
            make_text(bench / "text.jsonl")
            settings["data"]["path"] = str(bench / "text.jsonl")
        line = refused(bench, capsys, settings)
        assert line.startswith(f"BC039 {bench / 'conflict.yaml'}"), line
        assert said in line


def test_a_base_that_changed_stops_a_resume(bench, capsys):
    shutil.copytree(bench / "base", bench / "changing")
    settings = lora_settings(bench, "changed", max_steps=2)
    settings["model"]["path"] = str(bench / "changing")
    settings["checkpoint"] = {"save_steps": 1, "save_total_limit": None}
    assert run(bench, settings) == 0
    shutil.rmtree(bench / "changed" / "final")
    shutil.rmtree(bench / "changed" / "checkpoint-2")
    from transformers import AutoConfig

    make_base(bench / "changing", AutoConfig.from_pretrained(bench / "base"), seed=5)
    line = refused(bench, capsys, settings)
    assert line.startswith("BC047")
    assert "model.weights" in line
    assert run(bench, settings, "--allow", "model.weights") == 0


def test_help_of_merge_imports_no_torch():
    code = (
        "import sys\nfrom bumblecore_core.cli import main\n"
        "try:\n    main(['merge', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'peft' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Fold an adapter" in done.stdout
