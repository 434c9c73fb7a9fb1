"""Runs that are killed with SIGKILL at random moments, in the middle of anything, end in the same weights."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from bumblecore_core.cli import main
from bumblecore_core.run.checkpoint.manifest import faults
from resume_runs import STEPS, bench_of, differences, run, settings_of
from workbench import write_config


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The workbench, with a run that was left alone in `whole/`."""
    bench = bench_of(tmp_path_factory.mktemp("kills"))
    assert run(bench, killable(bench, "whole")) == 0
    started = time.monotonic()  # of a second run, whose imports are done, as they are in every run of these tests
    assert run(bench, killable(bench, "timed")) == 0
    (bench / "seconds").write_text(str(time.monotonic() - started))
    return bench


def killable(bench: Path, name: str) -> dict:
    return settings_of(bench, "pretrain", name, dropout=True, checkpoint={"save_steps": 2, "save_total_limit": 2})


def run_killed_after(config: Path, seconds: float | None, *options: str) -> bool:
    """Whether `bumble run` in a process of its own ended by itself, with success, before it was killed."""
    child = os.fork()
    if child == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            main([*options, "run", str(config)])
        except SystemExit as ended:
            os._exit(ended.code or 0)
        finally:
            os._exit(99)
    if seconds is not None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(min(0.005, seconds))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.WEXITSTATUS(status) == 0, f"exit code {os.WEXITSTATUS(status)}"
    return not killed


def survive(bench: Path, name: str, seed: int) -> bool:
    """Kills a run once, lets it end and compares; whether the kill hit it before it had ended."""
    config = write_config(bench / f"{name}.yaml", **killable(bench, name))
    started = time.monotonic()
    hit = not run_killed_after(config, random.Random(seed).uniform(0, float((bench / "seconds").read_text())))
    if not hit:  # the machine is faster now than it was: later kills come within what this run took
        (bench / "seconds").write_text(str(time.monotonic() - started))
    assert [faults(checkpoint) for checkpoint in (bench / name).glob("checkpoint-*") if faults(checkpoint)] == []
    assert run_killed_after(config, None)
    same_as_left_alone(bench, name)
    return hit


def same_as_left_alone(bench: Path, name: str) -> None:
    assert differences(bench / "whole", bench / name) == []
    assert not [path.name for path in (bench / name).iterdir() if path.name.endswith((".writing", ".outgoing"))]


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))])
def test_a_run_killed_at_a_random_time_ends_in_the_same_weights(bench, seed):
    survive(bench, f"once-{seed}", seed)


def test_a_run_killed_after_each_step_but_the_last_ends_in_the_same_weights(bench):
    settings = killable(bench, "often")
    settings["loggers"] = ["metrics_json", "kill_when_saved"]
    settings["checkpoint"]["save_steps"] = 1
    config = write_config(bench / "often.yaml", **settings)
    for _ in range(STEPS - 1):
        assert not run_killed_after(config, None, "-p", "bumblecore_core.testing.killer")
    assert [path.name for path in (bench / "often").glob("checkpoint-*") if faults(path)] == []
    settings["loggers"] = ["metrics_json"]
    assert run_killed_after(write_config(config, **settings), None)
    same_as_left_alone(bench, "often")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_hundred_kills(bench):
    hits = sum(survive(bench, f"hundred-{seed}", seed) for seed in range(100, 200))
    assert hits > 50
