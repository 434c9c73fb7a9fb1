"""However a run ends, and whenever: no process of it is left, nor what it was in the middle of making."""

import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bumblecore_core.run.checkpoint.manifest import faults
from launches import wait_for
from leftovers import all_end, marked, new_mark
from workbench import pretrain_settings, workbench, write_config

pytestmark = pytest.mark.slow
LIMIT = 90.0
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return workbench(tmp_path_factory.mktemp("left"))


def started(config: Path, mark: dict[str, str], *options: str, command: str = "run") -> subprocess.Popen:
    line = [sys.executable, "-m", "bumblecore_core", command, *options, str(config)]
    environment = {**os.environ, **mark}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def long_tokenization(bench: Path, name: str) -> Path:
    """A run that tokenizes in two processes for longer than the test takes."""
    (bench / "long.jsonl").write_text((bench / "text.jsonl").read_text() * 10_000)
    settings = pretrain_settings(bench)
    settings["data"] |= {"path": str(bench / "long.jsonl"), "num_proc": 2, "cache_dir": str(bench / f"cache-{name}")}
    return write_config(bench / f"{name}.yaml", **{**settings, "output_dir": str(bench / name)})


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_signal_while_tokenizing(bench, number, ranks):
    name = f"tokenizing-{ranks}-{int(number)}"
    config, mark = long_tokenization(bench, name), new_mark()
    process = started(config, mark, f"--nproc={ranks}")
    first = {1: 1, 2: 3}[ranks]  # the run, or launcher and ranks; then multiprocessing's tracker and the workers
    wait_for(lambda: len(marked(mark)) == first + 3, process, LIMIT)
    time.sleep(random.Random(name).uniform(0, 3))
    pids = marked(mark)
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT)
    assert all_end(pids)
    if number == signal.SIGKILL:
        return
    assert process.returncode == 128 + number
    assert "interrupted while tokenizing: no token shards were kept" in err
    assert f"interrupted by {number.name}\n" in err
    assert "Traceback" not in err
    assert [path.suffix for path in (bench / f"cache-{name}" / "tokens").iterdir()] == [".lock"]


def test_a_plan_that_tokenizes_cleans_up_too(bench):
    config, mark = long_tokenization(bench, "planned"), new_mark()
    process = started(config, mark, command="plan")
    wait_for(lambda: len(marked(mark)) == 4, process, LIMIT)
    pids = marked(mark)
    process.terminate()
    assert process.wait(LIMIT) == 143
    assert all_end(pids)
    assert [path.suffix for path in (bench / "cache-planned" / "tokens").iterdir()] == [".lock"]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_terminal_that_is_closed_ends_a_run_that_saves(bench, ranks):
    settings = pretrain_settings(bench, max_steps=1_000_000) | {"output_dir": str(bench / f"terminal-{ranks}")}
    settings["data"]["num_workers"] = 1
    config, mark = write_config(bench / f"terminal-{ranks}.yaml", **settings), new_mark()
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "bumblecore_core", "run", f"--nproc={ranks}", str(config)]
        os.execve(sys.executable, command, {**os.environ, **mark})
    history, until = Path(settings["output_dir"]) / "metrics.json", time.monotonic() + LIMIT
    while not (history.exists() and history.stat().st_size > 1000) and time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 65536)
    pids = marked(mark)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert all_end(pids)
    (checkpoint,) = Path(settings["output_dir"]).glob("checkpoint-*")
    assert faults(checkpoint) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(20))
def test_a_signal_at_a_random_moment(bench, seed):
    chance, name = random.Random(seed), f"random-{seed}"
    settings = pretrain_settings(bench, max_steps=30) | {"output_dir": str(bench / name)}
    settings["data"] |= {"num_proc": 2, "num_workers": 1, "cache_dir": str(bench / f"cache-{name}")}
    config, mark = write_config(bench / f"{name}.yaml", **settings), new_mark()
    process = started(config, mark, f"--nproc={1 + seed % 2}")
    try:
        process.wait(chance.uniform(0.5, 15))
    except subprocess.TimeoutExpired:
        process.send_signal(chance.choice(SIGNALS))
    _, err = process.communicate(timeout=LIMIT)
    assert all_end(marked(mark))
    assert "Traceback" not in err
