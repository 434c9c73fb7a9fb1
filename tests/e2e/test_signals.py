"""Processes that get a signal save, say so, and end as a shell expects: with 128 and the signal's number."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from bumblecore_core.cli import main
from bumblecore_core.cli.launched import told_to_launcher
from bumblecore_core.run.checkpoint.manifest import faults
from bumblecore_core.run.interrupts import SIGNALS, EarlyInterrupts, Interrupted, Interrupts, interrupted_by
from bumblecore_core.run.loggers import Loggers
from warm_processes import WarmProcess, run_warm
from workbench import pretrain_settings, workbench, write_config

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def config(tmp_path):
    settings = pretrain_settings(workbench(tmp_path), max_steps=1_000_000)
    return write_config(tmp_path / "run.yaml", **settings)


def started(config: Path, *launch: str) -> WarmProcess:
    """A run in a process of its own that has done some steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = WarmProcess(*launch, "-m", "bumblecore_core", "run", config, environment=environment)
    metrics = config.parent / "pretrain" / "metrics.json"
    process.wait_for(lambda: metrics.exists() and len(json.loads(metrics.read_text())) > 3)
    return process


def saved(config: Path) -> int:
    """The step of the one checkpoint there is, which is whole."""
    (checkpoint,) = (config.parent / "pretrain").glob("checkpoint-*")
    assert faults(checkpoint) == []
    return int(checkpoint.name.split("-")[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_ends_the_run(config, number):
    process = started(config)
    process.send_signal(number)
    done = process.end()
    assert done.returncode == 128 + number
    assert f"{signal.Signals(number).name}: saving a checkpoint, then stopping" in done.stderr
    assert f"interrupted by {signal.Signals(number).name}: {saved(config):,} steps" in done.stdout
    assert "Traceback" not in done.stderr
    assert (config.parent / "pretrain" / "metrics.json").read_text().count('"train"') == saved(config)


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_saves_in_this_process_too(config, number, monkeypatch, capfd):
    stepped = Loggers.step

    def step(loggers, event):
        stepped(loggers, event)
        if event.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Loggers, "step", step)
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config), "--set", "loggers=[metrics_json]"])
    assert ended.value.code == 128 + number
    assert saved(config) in (2, 3)
    assert f"interrupted by {signal.Signals(number).name}: " in capfd.readouterr().out
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for interrupts in (EarlyInterrupts(), Interrupts(speak=False)):
            with interrupts:
                assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
                assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_sigterm_does_not_interrupt_the_cleanup():
    cleaned = []

    def cleaning_up():
        with EarlyInterrupts():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGHUP)
                cleaned.append(True)

    with pytest.raises(Interrupted) as caught:
        cleaning_up()
    assert cleaned
    assert interrupted_by(caught.value) == signal.SIGTERM


def test_a_rank_ends_whose_launcher_died_before_it_could_look(monkeypatch, tmp_path):
    place = tmp_path / "launcher's"
    place.mkdir()
    monkeypatch.setenv("BUMBLE_LAUNCHED", str(place))
    monkeypatch.setenv("BUMBLE_LAUNCHER", str(os.getpid()))  # which is not this process's parent
    with pytest.raises(Interrupted), EarlyInterrupts(), told_to_launcher():
        time.sleep(30)
    assert not place.exists()
    assert "BUMBLE_LAUNCHER" not in os.environ  # processes that are started here have other parents


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_the_state_of_both_ranks(config, number):
    process = started(config, *TORCHRUN)
    process.send_signal(number)
    assert process.end().returncode != 0
    step = saved(config)
    assert {path.name for path in (config.parent / "pretrain" / f"checkpoint-{step}" / "state").glob("rank-*")} == {
        "rank-0",
        "rank-1",
    }


def test_a_signal_while_the_run_is_prepared_ends_it_without_a_traceback(config):
    process = WarmProcess("-m", "bumblecore_core", "run", config)
    process.wait_for((config.parent / "pretrain" / ".lock").exists)
    process.send_signal(signal.SIGINT)
    done = process.end()
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


LOST = """
import os, signal
from bumblecore_core import LoggerRecord, hookimpl

class Gone:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

class Quiet:
    def start(self, *, info): pass
    def step(self, *, event): pass
    def saved(self, *, directory): pass
    def finish(self, *, result): pass

def build(*, options, **given):
    Gone()
    return Quiet()

@hookimpl
def bumble_loggers():
    return [LoggerRecord(name="loses", summary="Loses an interrupt.", build=build)]
"""


def test_an_interrupt_that_python_loses_ends_the_run_before_its_first_step(config):
    (config.parent / "loses_one.py").write_text(LOST)
    arguments = ("-p", "loses_one", "run", config, "--set", "loggers=[loses]")
    ended = run_warm("-m", "bumblecore_core", *arguments, cwd=config.parent)
    assert "Exception ignored in" in ended.stderr
    assert ended.returncode == 130
    assert not list((config.parent / "pretrain").glob("checkpoint-*"))
