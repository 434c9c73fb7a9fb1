"""`bumble run`, ended by a signal at random moments from its start to its end, leaves no process behind and can be run
again to completion: while it imports, tokenizes in two processes, trains with two loader workers, and saves."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resume_runs import bench_of, settings_of
from workbench import make_text, write_config

GRACE = 300.0  # seconds from the signal until all processes are gone, on a loaded machine
LONGEST = 600.0  # seconds of one run on a loaded machine
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A workbench with enough rows for several chunks, and by number of ranks the seconds that a whole run takes."""
    bench = bench_of(tmp_path_factory.mktemp("nobody"))
    make_text(bench / "text.jsonl", rows=4000)
    return bench


@pytest.fixture(scope="module")
def seconds(bench):
    """By number of ranks, how long a run takes from its start to its end."""
    found = {}
    for ranks in (1, 2):
        began = time.monotonic()
        assert start(config_of(bench, f"timed-{ranks}"), ranks).wait(LONGEST) == 0
        found[ranks] = time.monotonic() - began
    return found


def config_of(bench: Path, name: str) -> Path:
    """A run with a cache of its own, so that each run tokenizes."""
    settings = settings_of(bench, "pretrain", name, checkpoint={"save_steps": 2, "save_total_limit": 2})
    settings["data"] |= {"num_proc": 2, "num_workers": 2, "cache_dir": str(bench / f"cache-{name}")}
    return write_config(bench / f"{name}.yaml", **settings)


def start(config: Path, ranks: int) -> subprocess.Popen:
    """`bumble run` in a session of its own, its processes marked in their environment by the config's path."""
    command = [sys.executable, "-m", "bumblecore_core", "run", str(config), *(["--nproc", "2"] if ranks == 2 else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BUMBLE_TEST_RUN": str(config)}
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=null, stderr=null, env=environment, start_new_session=True)


def processes_of(config: Path, session: int) -> list[str]:
    """The processes of a run: those of its session, and those that inherited its mark, whatever session they are in."""
    mark, found = f"BUMBLE_TEST_RUN={config}".encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            marked = mark in (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if state != "Z" and (marked or int(its_session) == session):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found.append(f"{entry.name} {command[:100]}")
    return found


def end_all(session: int) -> None:
    """Kills what is left, so that a failed test leaves no process behind either."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def left_after(bench: Path, seconds: dict[int, float], seed: int) -> list[str]:
    """Ends a run at a random moment, runs it again to its end, and gives the processes that outlived the first."""
    draw = random.Random(seed)
    ranks, number = 1 + seed % 2, SIGNALS[seed // 2 % 3]
    config = config_of(bench, f"run-{seed}")
    process = start(config, ranks)
    try:
        time.sleep(draw.uniform(0, seconds[ranks]))
        process.send_signal(number)
        process.wait(GRACE)
        until = time.monotonic() + GRACE
        while (left := processes_of(config, process.pid)) and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        end_all(process.pid)
        process.wait()
    again = start(config, ranks)
    try:
        assert again.wait(LONGEST) == 0, f"{number.name} with {ranks} rank(s): the run does not complete afterwards"
    finally:
        end_all(again.pid)
    assert (bench / f"run-{seed}" / "final" / "config.json").is_file()
    return [f"{number.name} with {ranks} rank(s), seed {seed}: {line}" for line in left]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])  # SIGKILL of one process, SIGTERM of two ranks
def test_a_signal_leaves_no_process_behind(bench, seconds, seed):
    assert left_after(bench, seconds, seed) == []


@pytest.mark.slow
@pytest.mark.exhaustive
def test_twenty_signals_leave_no_process_behind(bench, seconds):
    assert [line for seed in range(100, 120) for line in left_after(bench, seconds, seed)] == []
