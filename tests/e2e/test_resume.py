"""A run that went on from a checkpoint equals one that was left alone, bit for bit."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from bumblecore_core.run import loop
from bumblecore_core.run.checkpoint.compare import checkpoint_differences, history_differences
from bumblecore_core.run.checkpoint.folder import list_checkpoints
from bumblecore_plugins.engines.torch_engine import TorchEngine
from resume_runs import STEPS, bench_of, differences, run, settings_of
from workbench import write_config

CASES = {
    "plain": {},
    "dropout": {"dropout": True},
    "packing": {"data": {"packing": True}, "train": {"micro_batch_size": 1, "gradient_accumulation_steps": 2}},
    "bf16 with masters": {"model": {"dtype": "bf16"}},
    "pure bf16": {"model": {"dtype": "bf16", "master_weights": False}},
    "plateau": {"scheduler": {"name": "reduce_on_plateau", "patience": 0, "factor": 0.5}},
    "foreground": {"checkpoint": {"background": False}},
    "several steps an event": {"train": {"logging_steps": 4}},
}
FAST = [
    *(("pretrain", case) for case in ("dropout", "packing", "plateau")),
    *(("sft", case) for case in ("dropout", "bf16 with masters", "several steps an event")),
]
SAVE_POINTS = {"mid-epoch": 3, "epoch boundary": 7, "in the second epoch": 8, "at the end": STEPS}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return bench_of(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module", params=["pretrain", "sft"])
def stage(request):
    return request.param


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((stage, case), marks=() if (stage, case) in FAST else pytest.mark.slow, id=f"{case}-{stage}")
        for stage in ("pretrain", "sft")
        for case in CASES
    ],
)
def whole(request, bench):
    """(stage, case, directory) of a run without a break that saved at every step."""
    stage, name = request.param
    case, name = CASES[name], f"whole-{stage}-{name.replace(' ', '-')}"
    assert run(bench, settings_of(bench, stage, name, **case)) == 0
    return stage, case, bench / name


@pytest.mark.parametrize("point", SAVE_POINTS)
def test_a_resumed_run_is_the_same_bit_for_bit(bench, whole, point):
    stage, case, left = whole
    settings = settings_of(bench, stage, "resumed", **case)
    settings["checkpoint"]["save_steps"] = STEPS
    shutil.rmtree(bench / "resumed", ignore_errors=True)
    assert run(bench, settings, "--resume", str(left / f"checkpoint-{SAVE_POINTS[point]}")) == 0
    if point == "at the end":  # nothing was left to do but the final model
        assert checkpoint_differences(left / "final", bench / "resumed" / "final") == []
    else:
        assert differences(left, bench / "resumed") == []


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal in the middle of its n-th micro-batch."""

    def send(number, micro_batch, *, looks_after_each):
        forward_backward, calls = TorchEngine.forward_backward, []

        def counted(self, **inputs):
            calls.append(None)
            if len(calls) == micro_batch:
                os.kill(os.getpid(), number)
            return forward_backward(self, **inputs)

        monkeypatch.setattr(TorchEngine, "forward_backward", counted)
        monkeypatch.setattr(loop, "LONG_WINDOW", -1.0 if looks_after_each else 1e9)
        return calls

    return send


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("looks_after_each", [True, False])
def test_a_signal_in_the_middle_of_a_window_loses_nothing(
    bench, stage, number, looks_after_each, signal_at, monkeypatch, capsys
):
    name = f"left-alone-{stage}"
    case = {"checkpoint": {"save_steps": None, "save_every": None}}
    if not (bench / name).exists():
        assert run(bench, settings_of(bench, stage, name, dropout=True, **case)) == 0
    shutil.rmtree(bench / "stopped", ignore_errors=True)
    settings = settings_of(bench, stage, "stopped", dropout=True, **case)
    calls = signal_at(number, 3 * 3 + 2, looks_after_each=looks_after_each)
    assert run(bench, settings) == 128 + number
    assert len(calls) == (3 * 3 + 2 if looks_after_each else 3 * 3 + 3)
    saved = 3 if looks_after_each else 4
    assert [path.name for path in (bench / "stopped").glob("checkpoint-*")] == [f"checkpoint-{saved}"]
    assert "the same command goes on from there" in capsys.readouterr().out
    monkeypatch.undo()
    assert run(bench, settings) == 0
    left, right = bench / name, bench / "stopped"
    assert history_differences(left / "metrics.json", right / "metrics.json") == []
    assert checkpoint_differences(left / "final", right / "final") == []


def test_a_signal_during_the_evaluation_runs_it_again_after_resuming(bench, monkeypatch):
    settings = settings_of(bench, "pretrain", "whole-evaluated")
    assert run(bench, settings) == 0
    evaluate = TorchEngine.evaluate

    def interrupted(self, **inputs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, **inputs)

    monkeypatch.setattr(TorchEngine, "evaluate", interrupted)
    settings = settings_of(bench, "pretrain", "stopped-evaluating")
    assert run(bench, settings) == 128 + signal.SIGTERM
    entries = _history(bench / "stopped-evaluating")
    assert [(entry["step"], entry["split"]) for entry in entries] == [(1, "train"), (2, "train"), (3, "train")]
    monkeypatch.undo()
    assert run(bench, settings) == 0
    assert differences(bench / "whole-evaluated", bench / "stopped-evaluating") == []


def test_a_signal_before_the_first_step_saves_nothing_and_says_so(bench, signal_at, capsys):
    signal_at(signal.SIGTERM, 1, looks_after_each=True)
    assert run(bench, settings_of(bench, "pretrain", "stopped-early")) == 128 + signal.SIGTERM
    assert not list((bench / "stopped-early").glob("checkpoint-*"))
    assert "before the first step was done" in capsys.readouterr().out


def test_a_stopped_run_does_not_begin_the_next_config(bench, signal_at):
    signal_at(signal.SIGTERM, 2, looks_after_each=True)
    first = settings_of(bench, "pretrain", "chain-first")
    second = settings_of(bench, "pretrain", "chain-second")
    write_config(bench / "chain-second.yaml", **second)
    assert run(bench, first, str(bench / "chain-second.yaml")) == 128 + signal.SIGTERM
    assert not (bench / "chain-second").exists()


def test_a_longer_horizon_and_another_rate_are_taken_up_where_they_are_allowed(bench, capsys):
    settings = settings_of(bench, "pretrain", "longer", train={"max_steps": 4})
    assert run(bench, settings) == 0
    settings["train"]["max_steps"] = 8
    settings["optimizer"]["lr"] = 1e-3
    assert run(bench, settings) == 2
    told = capsys.readouterr().err
    assert "--allow optimizer.lr" in told
    assert "--allow train.max_steps" in told
    assert run(bench, settings, "--allow", "optimizer.lr", "--allow", "train.max_steps") == 0
    rates = [entry["learning_rate"] for entry in _history(bench / "longer") if entry["split"] == "train"]
    untouched = settings_of(bench, "pretrain", "from-the-start", train={"max_steps": 8}, optimizer={"lr": 1e-3})
    assert run(bench, untouched) == 0
    expected = [entry["learning_rate"] for entry in _history(bench / "from-the-start") if entry["split"] == "train"]
    assert rates[4:] == expected[4:]
    assert rates[0] == expected[0] * 3
    sizes = [checkpoint.manifest.size for checkpoint in list_checkpoints(bench / "from-the-start")]
    assert len(sizes) == 8
    assert max(sizes) - min(sizes) < 500, "a checkpoint does not grow with the steps of the run"


def _history(directory: Path) -> list[dict]:
    return json.loads((directory / "metrics.json").read_text())
