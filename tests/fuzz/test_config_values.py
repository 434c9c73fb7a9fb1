"""Each key of a config with odd values: a plan, or a coded error fit for a terminal, in bounded time."""

from __future__ import annotations

import random
import signal
from typing import Any

import pytest
from config_cases import REGISTRY, SWITCHES, config_with, fits, keys, make_bench, values

from bumblecore_core.config.resolve import load_run
from bumblecore_core.config.yaml import dump
from bumblecore_core.errors import CODES, BumbleError
from bumblecore_core.run.planning import plan_run

CPU_SECONDS = 60.0  # of one case; CPU time, so that a busy machine fails nothing
LONGEST_LINE = 9000
FITTING = 0.8  # share of values of the key's own type: others end at the schema


class TooLong(BaseException):
    """A case took more than `CPU_SECONDS`."""


def stop(number: int, frame: Any) -> None:
    raise TooLong


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(autouse=True)
def surroundings(bench, monkeypatch):
    """`~` and relative paths lie in the bench. SIGVTALRM stays the program's own."""
    monkeypatch.setenv("HOME", str(bench / "home"))
    monkeypatch.chdir(bench)
    before = signal.signal(signal.SIGPROF, stop)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def cases(bench, seed: int, count: int):
    """(key, value) pairs: every key in turn, in a random order."""
    draw, pool, order = random.Random(seed), values(bench), keys()
    draw.shuffle(order)
    for at in range(count):
        key = order[at % len(order)]
        fitting = [value for value in pool if fits(value, key.types)]
        yield key, draw.choice(fitting if fitting and draw.random() < FITTING else pool)


def fault_of(bench, key, value) -> str:
    """What is wrong with the outcome; empty for a plan or a proper error."""
    config = bench / "run.yaml"
    config.write_text(dump(config_with(bench, key, value)), encoding="utf-8")
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        run = load_run(config, [], REGISTRY)
        if run.engine.name != "deepspeed":  # which takes a process group
            plan_run(run, REGISTRY, SWITCHES, devices=1)
    except BumbleError as error:
        return fault_of_error(error)
    except TooLong:
        return f"more than {CPU_SECONDS:g} seconds of CPU time"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def fault_of_error(error: BumbleError) -> str:
    lines = str(error).splitlines()
    if error.exit_code != 2:
        return f"exit code {error.exit_code}"
    if len(lines) != min(20, len(error.problems)) + (error.total > 20):
        return f"{len(lines)} lines for {len(error.problems)} problems"
    if any(problem.code not in CODES for problem in error.problems):
        return "an unknown code"
    if any(not line.isprintable() or len(line) > LONGEST_LINE for line in lines):
        return f"a line that is not fit for a terminal: {lines[0]!r}"[:300]
    return ""


def faults(bench, seed: int, count: int) -> list[str]:
    found = []
    for key, value in cases(bench, seed, count):
        if fault := fault_of(bench, key, value):
            found.append(f"{key} = {value!r:.80}: {fault}")
    return found


def test_the_walk_finds_keys_of_the_core_and_of_plugins():
    found = {str(key) for key in keys()}
    assert {"train.epochs", "data.path.0.weight", "optimizer.lr of adamw", "stage.train_on of sft"} <= found
    assert len(found) > 200


def test_odd_values(bench):
    assert faults(bench, seed=1, count=200) == []


@pytest.mark.slow
@pytest.mark.exhaustive
def test_many_odd_values(bench):
    assert faults(bench, seed=2, count=5000) == []
