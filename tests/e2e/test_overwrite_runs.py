"""`--overwrite` keeps the earlier run until the new one has trained, whatever keeps that from starting."""

import os
import shutil
import signal

import pytest

from bumblecore_core.run.overwrite import pending, set_aside
from bumblecore_plugins.engines.torch_engine import TorchEngine
from lora_runs import ADAPTER
from resume_runs import bench_of, run, settings_of
from workbench import write_config

LOGGERS = ["metrics_json", "csv", "log_file", "tensorboard"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workbench with a finished run in `out`."""
    bench = bench_of(tmp_path_factory.mktemp("overwrite"))
    assert run(bench, settings(bench)) == 0
    (bench / "out" / "notes.txt").write_text("mine")
    return bench


@pytest.fixture
def bench(made, tmp_path):
    return shutil.copytree(made, tmp_path / "bench", ignore=shutil.ignore_patterns("cache"))


@pytest.fixture
def before(bench):
    return contents(bench / "out")


def settings(bench, name="out", **changes):
    train = {"max_steps": 2, "micro_batch_size": 2, "gradient_accumulation_steps": 1, "eval_steps": None}
    changes = {"train": train, "checkpoint": {"save_steps": 2}, "loggers": LOGGERS, **changes}
    return settings_of(bench, "sft", name, **changes)


def contents(directory):
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def no_data(bench, config, monkeypatch):
    config["data"]["path"] = "gone.json"


def no_model(bench, config, monkeypatch):
    config["model"]["path"] = "gone"


def broken_weights(bench, config, monkeypatch):
    shutil.copytree(bench / "start" / "final", bench / "broken")
    (bench / "broken" / "model.safetensors").write_bytes(b"no weights")
    config["model"]["path"] = str(bench / "broken")


def no_target(bench, config, monkeypatch):
    config["adapter"] = {**ADAPTER, "target_modules": ["nothing"]}


def failing_step(bench, config, monkeypatch):
    monkeypatch.setattr(TorchEngine, "forward_backward", lambda self, **inputs: 1 / 0)


def no_good_step(bench, config, monkeypatch):
    forward_backward = TorchEngine.forward_backward

    def not_finite(self, **inputs):
        output = forward_backward(self, **inputs)
        output.loss_sum = output.loss_sum * float("nan")
        return output

    monkeypatch.setattr(TorchEngine, "forward_backward", not_finite)
    config["checkpoint"] = {"save_steps": 1}


def stopped_at_once(bench, config, monkeypatch):
    step = TorchEngine.forward_backward

    def interrupted(self, **inputs):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, **inputs)

    monkeypatch.setattr(TorchEngine, "forward_backward", interrupted)


@pytest.mark.parametrize(
    "fault", [no_data, no_model, broken_weights, no_target, failing_step, no_good_step, stopped_at_once]
)
@pytest.mark.parametrize("in_place", [False, True])
def test_a_run_that_does_not_train_replaces_nothing(bench, before, monkeypatch, fault, in_place):
    config = settings(bench)
    config["optimizer"]["lr"] = 1e-4
    fault(bench, config, monkeypatch)
    if in_place:  # the config is the earlier run's own run.yaml, rewritten by hand
        header = (bench / "out" / "run.yaml").read_text().splitlines()[0] + "\n"
        write_config(bench / "out" / "run.yaml", **config)
        (bench / "out" / "run.yaml").write_text(header + (bench / "out" / "run.yaml").read_text())
        before = contents(bench / "out")
    with pytest.raises((SystemExit, ZeroDivisionError, KeyboardInterrupt)) as ended:
        start(bench, config, in_place)
    assert getattr(ended.value, "code", 1) != 0
    assert contents(bench / "out") == before


def start(bench, config, in_place):
    from bumblecore_core.cli import main

    path = bench / "out" / "run.yaml" if in_place else write_config(bench / "new.yaml", **config)
    main(["run", str(path), "--overwrite"])


def test_a_run_that_trains_replaces_the_earlier_one_and_nothing_else(bench, before):
    config = settings(bench, loggers=["metrics_json"], checkpoint={"save_steps": None})
    assert run(bench, config, "--overwrite") == 0
    after = contents(bench / "out")
    assert {name.split("/")[0] for name in after} == {
        *("final", "metrics.json", "notes.txt", "run.info.json", "run.lock.json", "run.yaml")
    }
    assert after["notes.txt"] == b"mine"


def test_the_earlier_run_is_there_until_the_first_step_is_done(bench, monkeypatch):
    seen, forward_backward = [], TorchEngine.forward_backward

    def look(self, **inputs):
        seen.append((pending(bench / "out"), (bench / "out" / ".replaced" / "final" / "config.json").exists()))
        return forward_backward(self, **inputs)

    monkeypatch.setattr(TorchEngine, "forward_backward", look)
    assert run(bench, settings(bench), "--overwrite") == 0
    assert seen == [(True, True), (False, False)]


def test_a_run_that_is_stopped_after_a_step_stays_and_says_how_to_resume_it(bench, monkeypatch, capsys):
    step = TorchEngine.step

    def interrupted(self, **inputs):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, **inputs)

    monkeypatch.setattr(TorchEngine, "step", interrupted)
    config = settings(bench)
    config["train"]["max_steps"] = 4
    assert run(bench, config, "--overwrite") == 128 + signal.SIGTERM
    assert "the same command without --overwrite resumes it" in capsys.readouterr().out
    assert not pending(bench / "out")
    monkeypatch.undo()
    assert run(bench, config) == 0
    assert "complete: 4 steps" in capsys.readouterr().out


def test_a_crash_while_it_is_replaced_is_made_good_by_the_next_run(bench, before, capsys):
    from types import SimpleNamespace

    set_aside(SimpleNamespace(config=SimpleNamespace(output_dir=str(bench / "out")), path=bench / "out.yaml"))
    (bench / "out" / "metrics.json").write_text("of a run that was killed")
    assert run(bench, settings(bench)) == 0
    assert "holds this very run already" in capsys.readouterr().out
    assert contents(bench / "out") == before


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("model.path", {"model": {"path": "out"}}),
        ("model.path", {"model": {"path": "out/final"}}),
        ("model.tokenizer", {"model": {"tokenizer": "out/checkpoint-2"}}),
        ("checkpoint.resume", {"checkpoint": {"resume": "out/checkpoint-2"}}),
        ("adapter.path", {"adapter": {"name": "lora", "path": "out/final"}}),
    ],
)
def test_what_the_new_run_needs_is_not_replaced(bench, before, monkeypatch, capsys, key, change):
    monkeypatch.chdir(bench)
    assert run(bench, settings(bench, **change), "--overwrite") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("BC039 ")
    assert f" {key}, output_dir: out" in line
    assert contents(bench / "out") == before


@pytest.mark.parametrize("name", ["final", "checkpoint-2"])
def test_what_no_run_is_known_to_have_written_is_not_replaced(bench, capsys, name):
    (bench / "other" / name).mkdir(parents=True)
    (bench / "other" / name / "model.safetensors").write_bytes(b"mine")
    assert run(bench, settings(bench, "other"), "--overwrite") == 2
    assert f"BC069 {bench / 'other'} output_dir: holds {name} without the run.yaml" in capsys.readouterr().err
    assert (bench / "other" / name / "model.safetensors").read_bytes() == b"mine"


def test_a_chain_replaces_each_run_when_its_turn_has_come_and_checks_all_before(bench, before, monkeypatch, capsys):
    first, second = settings(bench, "first"), settings(bench)
    second["model"]["path"] = str(bench / "first")
    write_config(bench / "second.yaml", **second)
    chain = (str(bench / "second.yaml"), "--overwrite")
    with pytest.MonkeyPatch.context() as patched:
        failing_step(bench, first, patched)
        with pytest.raises(ZeroDivisionError):
            run(bench, first, *chain)
    assert contents(bench / "out") == before
    write_config(bench / "second.yaml", **{**second, "checkpoint": {"resume": str(bench / "out" / "checkpoint-2")}})
    assert run(bench, first, *chain) == 2
    assert "BC039" in capsys.readouterr().err
    assert not (bench / "first" / "final").exists()
    write_config(bench / "second.yaml", **second)
    assert run(bench, first, *chain) == 0
    assert contents(bench / "out")["run.lock.json"] != before["run.lock.json"]
