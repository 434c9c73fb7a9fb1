"""`bumble checkpoint` and `bumble verify-resume`, as a user runs them; and which checkpoints a run leaves."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bumblecore_core.cli import main
from bumblecore_core.run.checkpoint.compare import checkpoint_differences
from resume_runs import STEPS, bench_of, run, settings_of
from workbench import write_config

FORGETFUL = """
import random
from bumblecore_core import LossRecord, StepOutput, hookimpl

def build(*, options):
    import torch.nn.functional as F
    stream = random.Random(0)  # its own, which no checkpoint holds

    def loss(*, hidden, head, targets):
        scale = stream.uniform(0.5, 1.5)
        total = F.cross_entropy(head.logits(hidden).float(), targets, reduction="sum")
        return StepOutput(loss_sum=scale * total, count=targets.numel())

    return loss

@hookimpl
def bumble_losses():
    return [LossRecord(name="forgetful", summary="Scales by chance.", build=build, loss_kind="token")]
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return bench_of(tmp_path_factory.mktemp("commands"))


def bumble(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def evaluated(bench):
    """A run at a rate at which it gets worse again, that keeps one checkpoint and the best."""
    settings = settings_of(bench, "pretrain", "evaluated", train={"eval_steps": 1}, optimizer={"lr": 3.0})
    settings["checkpoint"] = {"save_steps": 1, "save_total_limit": 1}
    assert run(bench, settings) == 0
    return bench / "evaluated"


def test_the_best_and_the_newest_are_kept(evaluated):
    entries = json.loads((evaluated / "metrics.json").read_text())
    losses = {entry["step"]: entry["loss"] for entry in entries if entry["split"] == "eval"}
    best = min(losses, key=losses.get)
    assert best != STEPS
    assert {path.name for path in evaluated.glob("checkpoint-*")} == {f"checkpoint-{best}", f"checkpoint-{STEPS}"}


def test_the_list_shows_step_epoch_loss_and_the_best(evaluated, capsys):
    assert bumble("checkpoint", "list", evaluated) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["checkpoint", "step", "epoch", "size", "evaluation", "loss"]
    assert [row.split()[0] for row in rows][-2:] == [f"checkpoint-{STEPS}", "final"]
    assert [row.split()[0] for row in rows if row.endswith("best by evaluation")] == [rows[0].split()[0]]
    assert rows[-2].split()[1:3] == [str(STEPS), "1.29"]


def test_verifying_tells_each_and_finds_what_is_wrong(evaluated, capsys):
    assert bumble("checkpoint", "verify", evaluated) == 0
    assert capsys.readouterr().out.count("whole (") == 3
    weights = evaluated / "final" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert bumble("checkpoint", "verify", evaluated) == 2
    assert f"BC046 {evaluated / 'final'}: model.safetensors is not what was written" in capsys.readouterr().err
    weights.write_bytes(kept)


def test_a_directory_without_checkpoints(tmp_path, capsys):
    assert bumble("checkpoint", "list", tmp_path) == 0
    assert "no checkpoint in" in capsys.readouterr().out
    assert bumble("checkpoint", "verify", tmp_path) == 2
    assert "manifest.json is missing" in capsys.readouterr().err
    assert bumble("checkpoint", "list", tmp_path / "nothing") == 2


def test_a_checkpoint_by_the_clock_in_small_shards_loads_without_us_and_resumes(bench):
    settings = settings_of(bench, "pretrain", "clock", model={"dtype": "bf16"})
    settings["checkpoint"] = {"save_every": "0.001s", "max_shard_size": "20KB", "save_total_limit": None}
    assert run(bench, settings) == 0
    saved = sorted((bench / "clock").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(saved) > 3
    assert len(list(saved[0].glob("model-*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(saved[0], dtype="auto")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(saved[0]).chat_template
    again = {**settings, "output_dir": str(bench / "clock-resumed")}
    assert run(bench, again, "--resume", str(saved[0])) == 0
    assert checkpoint_differences(bench / "clock" / "final", bench / "clock-resumed" / "final") == []


def test_the_comparison_sees_a_single_bit_of_a_weight(evaluated, tmp_path):
    copy = shutil.copytree(evaluated / "final", tmp_path / "copy")
    assert checkpoint_differences(evaluated / "final", copy) == []
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    (found,) = checkpoint_differences(evaluated / "final", copy)
    assert found.startswith("the weight model.")


def test_saving_after_the_last_step_is_refused(bench, capsys):
    config = write_config(bench / "verify.yaml", **settings_of(bench, "pretrain", "unused"))
    assert bumble("verify-resume", config, "--steps", 4, "--save-at", 4) == 2
    assert "less than --steps" in capsys.readouterr().err


def test_kept_runs_are_deleted_only_with_force(bench, evaluated, tmp_path, capsys, monkeypatch):
    config = write_config(bench / "verify.yaml", **settings_of(bench, "pretrain", "unused"))
    kept = shutil.copytree(evaluated, tmp_path / "whole")
    (kept / "notes.md").write_text("mine")
    assert bumble("verify-resume", config, "--keep", tmp_path) == 2
    assert f"BC069 {kept} --keep: the output exists" in capsys.readouterr().err
    assert (kept / "final").exists()
    monkeypatch.setattr("bumblecore_core.cli.verify_resume._compare", lambda *arguments: [])
    assert bumble("verify-resume", config, "--keep", tmp_path, "--force") == 0
    assert not (kept / "final").exists()
    assert (kept / "notes.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_verify_resume_proves_it(bench, capsys, processes):
    settings = settings_of(bench, "pretrain", "unused", dropout=True)
    config = write_config(bench / "verify.yaml", **settings)
    assert bumble("verify-resume", config, "--steps", 4, "--nproc", processes) == 0
    assert "the same, bit for bit: killed at step 2, resumed to step 4" in capsys.readouterr().out
    assert not (bench / "unused").exists()


@pytest.mark.slow
def test_verify_resume_finds_a_plugin_that_forgets(bench, capsys, monkeypatch):
    monkeypatch.chdir(bench)
    monkeypatch.setenv("PYTHONPATH", str(bench))
    (bench / "forgetful.py").write_text(FORGETFUL)
    config = write_config(bench / "verify.yaml", **{**settings_of(bench, "pretrain", "unused"), "loss": "forgetful"})
    assert bumble("-p", "forgetful", "verify-resume", config, "--steps", 4) == 1
    out = capsys.readouterr().out
    assert "NOT the same after resuming" in out
    assert "metrics.json, step 3 (train):" in out
