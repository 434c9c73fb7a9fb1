"""Runs of two ranks that `bumble run --nproc 2` starts: they train, are told of signals, killed, and go on."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from bumblecore_core.cli import main
from bumblecore_core.run.checkpoint.manifest import faults
from launches import LIMIT, nobody_left, ranks_of, signal_arrived, wait_for
from resume_runs import differences
from workbench import pretrain_settings, workbench, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return workbench(tmp_path_factory.mktemp("launch"))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    return int(ended.value.code or 0)


def config_of(bench: Path, name: str, **changes) -> Path:
    settings = pretrain_settings(bench, **{"max_steps": 12, **changes.pop("train", {})})
    settings |= {"output_dir": str(bench / name), "loggers": ["metrics_json"], **changes}
    return write_config(bench / f"{name}.yaml", **settings)


def started(*arguments: object, plugin: str = "", **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "bumblecore_core", *(["-p", plugin] if plugin else []), "run", "--nproc", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, **options}
    return subprocess.Popen([*command, *map(str, arguments)], **options)


def trained(bench: Path, name: str, steps: int = 3):
    """Whether the run called `name` has done some steps."""
    history = bench / name / "metrics.json"
    return lambda: history.exists() and len(json.loads(history.read_text())) > steps


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def test_two_ranks_train_and_one_speaks(bench):
    code, out, err = ended(started(config_of(bench, "plain", loggers=["progress", "metrics_json"])))
    assert code == 0, err
    assert out.count("bumble: pretrain") == out.count("complete: 12 steps") == 1
    assert "2 processes over gloo" in out
    assert err.count("step 12/12") == 1
    for word in ("Traceback", "torch.distributed", "ChildFailed", "elastic"):
        assert word not in out + err


def test_the_bar_is_drawn_on_the_launchers_terminal(bench):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    config = config_of(bench, "bar", loggers=["progress"])
    process = started(config, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        said += part
    assert process.wait(LIMIT) == 0, said
    assert b"12/12" in said
    assert b"step/s" in said
    assert said.count(b"\r") > 12


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)])
def test_a_signal_saves_the_state_of_both_ranks_and_the_same_command_goes_on(bench, number):
    name = f"stopped-{int(number)}"
    config = config_of(bench, name, train={"max_steps": 1_000_000})
    process = started(config)
    wait_for(trained(bench, name), process)
    process.send_signal(number)
    code, out, err = ended(process)
    assert code == 128 + number
    name_of_it = signal.Signals(number).name
    assert err == f"\n{name_of_it}: saving a checkpoint, then stopping (Ctrl-C again: stop at once)\n"
    assert out.count(f"interrupted by {name_of_it}: ") == 1
    (checkpoint,) = (bench / name).glob("checkpoint-*")
    assert faults(checkpoint) == []
    assert {path.name for path in (checkpoint / "state").glob("rank-*")} == {"rank-0", "rank-1"}
    steps = int(checkpoint.name.split("-")[1]) + 3
    code, out, err = ended(started(config, "--set", f"train.max_steps={steps}", "--allow", "train"))
    assert code == 0, err
    assert f"complete: {steps:,} steps" in out


KILLED = """
import os, signal
from bumblecore_core import LoggerRecord, NoOptions, hookimpl

class Nothing:
    def start(self, *, info): ...
    def step(self, *, event): ...
    def saved(self, *, directory): ...
    def finish(self, *, result): ...

@hookimpl
def bumble_loggers():
    return [LoggerRecord(name="no_logger", summary="Nothing.", build=lambda *, options: Nothing(), options=NoOptions)]

rank, how, at = os.environ.get("RANK", ""), os.environ["KILLED_HOW"], int(os.environ["KILLED_AT"])
if how == "loop" and rank == "1":
    from bumblecore_plugins.engines.torch_engine import TorchEngine
    plain, calls = TorchEngine.forward_backward, []
    def counted(self, **inputs):
        calls.append(None)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, **inputs)
    TorchEngine.forward_backward = counted
if how == "raise" and rank == "1":
    from bumblecore_plugins.engines.torch_engine import TorchEngine
    def broken(self, **inputs):
        raise ValueError("out of luck")
    TorchEngine.forward_backward = broken
if how == "save" and rank == "0":
    from bumblecore_core.run.checkpoint import writing
    plain, calls = os.fsync, []
    def counted(descriptor):
        calls.append(None)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(descriptor)
    os.fsync = counted
"""


@pytest.fixture
def killing(bench, monkeypatch):
    """A plugin that ends a rank at the place that is set."""
    (bench / "killing.py").write_text(KILLED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(bench), os.environ.get("PYTHONPATH", "")]))

    def at(how: str, moment: int) -> None:
        monkeypatch.setenv("KILLED_HOW", how)
        monkeypatch.setenv("KILLED_AT", str(moment))

    return at


@pytest.fixture(scope="module")
def whole(bench):
    """The run that was left alone."""
    code, _, err = ended(started(config_of(bench, "whole", checkpoint={"save_steps": 4, "save_total_limit": None})))
    assert code == 0, err
    return bench / "whole"


@pytest.mark.parametrize(
    ("how", "moment", "rank"),
    [
        ("loop", 7, 1),
        pytest.param("save", 3, 0, marks=pytest.mark.exhaustive),
        ("save", 9, 0),
        pytest.param("save", 14, 0, marks=pytest.mark.exhaustive),
    ],
)
def test_a_rank_killed_in_the_loop_or_while_saving_ends_the_run_which_then_goes_on(
    bench, killing, whole, how, moment, rank
):
    name = f"killed-{how}-{moment}"
    config = config_of(bench, name, checkpoint={"save_steps": 4, "save_total_limit": None})
    killing(how, moment)
    process = started(config, plugin="killing")
    wait_for(lambda: len(ranks_of(process)) == 2, process)
    pids = ranks_of(process)
    code, out, err = ended(process)
    assert code == 137
    assert err.startswith(f"BC067: rank {rank} of 2 was ended by SIGKILL, and the others were stopped. ")
    assert err.count("\n") == 1
    assert "complete" not in out
    assert nobody_left(pids.values())
    assert [faults(checkpoint) for checkpoint in (bench / name).glob("checkpoint-*") if faults(checkpoint)] == []
    code, _, err = ended(started(config))
    assert code == 0, err
    assert differences(whole, bench / name, steps=12) == []


def test_an_exception_of_one_rank_is_told_once(bench, killing):
    config = config_of(bench, "raised")
    killing("raise", 0)
    code, _, err = ended(started(config, plugin="killing"))
    assert code == 1
    assert err.startswith("rank 1: Traceback")
    assert err.rstrip().endswith("ValueError: out of luck")
    assert err.count("Traceback") == 1


@pytest.mark.exhaustive
def test_an_error_that_all_ranks_meet_is_told_once(bench):
    config = config_of(bench, "no-data", data={"path": str(bench / "nothing.jsonl"), "max_length": 64})
    code, _, err = ended(started(config))
    assert code == 2
    assert err.startswith("BC021")
    assert err.count("\n") == 1


@pytest.mark.exhaustive
def test_ranks_save_and_end_when_their_launcher_is_killed(bench):
    config = config_of(bench, "orphans", train={"max_steps": 1_000_000})
    process = started(config)
    wait_for(trained(bench, "orphans"), process)
    pids = ranks_of(process)
    assert len(pids) == 2
    process.kill()
    process.wait()
    end = time.monotonic() + LIMIT
    while not nobody_left(pids.values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    (checkpoint,) = (bench / "orphans").glob("checkpoint-*")
    assert faults(checkpoint) == []


def test_a_second_ctrl_c_ends_a_run_at_once(bench):
    config = config_of(bench, "hurried", train={"max_steps": 1_000_000})
    process = started(config)
    wait_for(trained(bench, "hurried"), process)
    pids = ranks_of(process)
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)  # as if they hung
    process.send_signal(signal.SIGINT)
    wait_for(lambda: all(signal_arrived(pid, signal.SIGINT) for pid in pids.values()), process)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130
    assert err.rstrip().endswith("interrupted")
    assert nobody_left(pids.values())


@pytest.mark.exhaustive
def test_ctrl_c_before_training_starts_is_told_once(bench):
    config = config_of(bench, "early", train={"max_steps": 1_000_000})
    process = started(config)
    wait_for((bench / "early" / ".lock").exists, process)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130
    assert err.count("interrupted") <= 1
    assert "Traceback" not in err


def test_a_chain_and_verify_resume_run_in_two_processes(bench, capfd):
    first = config_of(bench, "first", train={"max_steps": 3})
    settings = pretrain_settings(bench, max_steps=3)
    settings["model"]["path"] = str(bench / "first" / "final")
    settings |= {"stage": "continue_pretrain", "output_dir": str(bench / "second"), "loggers": []}
    second = write_config(bench / "second.yaml", **settings)
    code, out, err = ended(started(first, second))
    assert code == 0, err
    assert out.count("complete: 3 steps") == 2
    assert run("verify-resume", first, "--steps", 4, "--nproc", 2) == 0
    assert "the same, bit for bit: killed at step 2, resumed to step 4, 2 process(es)" in capfd.readouterr().out
