"""What wandb recorded or sent is what was told, once. Nothing here reaches beyond this machine."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from logger_runs import CONFIG, events_of, info_of, tell
from wandb.proto.wandb_internal_pb2 import Record
from wandb_server import wandb_server

from bumblecore_core import StepEvent
from bumblecore_plugins.loggers import WandbOptions
from bumblecore_plugins.loggers.wandb_run import WandbRun

BLOCK, HEADER = 32768, 7
LAST_PIECE = (1, 4)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def records(directory: Path) -> list[Record]:
    """The records of a wandb directory's log. wandb may write its end a moment after `finish` has returned."""
    [path] = directory.glob("*.wandb")
    for _ in range(200):
        try:
            found = list(parsed(path.read_bytes()))
        except (DecodeError, struct.error):
            found = []
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def parsed(data: bytes) -> Iterator[Record]:
    """The records of a log: pieces within blocks of 32 KiB, each with checksum, size and kind."""
    at, whole = HEADER, b""
    while at < len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in LAST_PIECE:
            yield Record.FromString(whole)
            whole = b""


def recorded(directory: Path) -> list[dict[str, Any]]:
    """A wandb directory's history rows."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(directory)
        if record.WhichOneof("record_type") == "history"
    ]


def figures(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows without what wandb adds to them; every value with all its digits, NaN too."""
    kept = [{name: value for name, value in row.items() if name == "_step" or name[0] != "_"} for row in rows]
    return [{name: repr(float(value)) for name, value in row.items()} for row in kept]


def expected(events: list[StepEvent]) -> list[dict[str, str]]:
    """A row for each step, with the evaluation after it."""
    rows: dict[int, dict[str, float]] = {}
    for event in events:
        row = rows.setdefault(event.step, {"_step": event.step})
        row.update({f"{event.split}/{name}": value for name, value in event.metrics.items()})
    return figures(list(rows.values()))


def offline_runs(output: Path) -> list[Path]:
    return sorted((output / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)


def run_record(directory: Path) -> Any:
    return next(record.run for record in records(directory) if record.WhichOneof("record_type") == "run")


def test_an_offline_run_holds_what_was_told(tmp_path):
    output = tmp_path / "runs" / "first"
    told = events_of(1, 9)
    assert any(math.isnan(value) for event in told for value in event.metrics.values())
    tell(WandbRun(options=WandbOptions(tags=("small",), entity="us")), info_of(output), told)
    [directory] = offline_runs(output)
    assert figures(recorded(directory)) == expected(told)
    run = run_record(directory)
    assert (run.display_name, run.project, run.entity, list(run.tags)) == ("first", "bumblecore", "us", ["small"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG


def test_hundreds_of_steps_are_all_there(tmp_path):
    """More than a block of wandb's log."""
    told = events_of(1, 300)
    tell(WandbRun(options=WandbOptions(run_name="mine", project="p")), info_of(tmp_path), told)
    [directory] = offline_runs(tmp_path)
    assert next(directory.glob("*.wandb")).stat().st_size > 2 * BLOCK
    assert figures(recorded(directory)) == expected(told)
    assert (run_record(directory).display_name, run_record(directory).project) == ("mine", "p")


def test_the_environment_wins_over_the_mode(tmp_path, monkeypatch):
    tell(WandbRun(options=WandbOptions(mode="online")), info_of(tmp_path / "a"), events_of(1, 1))
    assert len(offline_runs(tmp_path / "a")) == 1
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tell(WandbRun(options=WandbOptions(mode="offline")), info_of(tmp_path / "b"), events_of(1, 3))
    assert not offline_runs(tmp_path / "b")
    monkeypatch.delenv("WANDB_MODE")
    tell(WandbRun(options=WandbOptions(mode="offline")), info_of(tmp_path / "c"), events_of(1, 1))
    assert len(offline_runs(tmp_path / "c")) == 1


def test_offline_each_start_is_a_run_with_the_whole_history(tmp_path):
    tell(WandbRun(options=WandbOptions()), info_of(tmp_path), events_of(1, 7), status="interrupted")
    (tmp_path / "wandb_run_id.txt").write_text("online")
    history, again = events_of(1, 5), events_of(6, 9, attempt=1)
    tell(WandbRun(options=WandbOptions()), info_of(tmp_path, history=history), again)
    earlier, newest = offline_runs(tmp_path)
    assert figures(recorded(earlier)) == expected(events_of(1, 7))
    assert figures(recorded(newest)) == expected(history + again)
    assert len({run_record(earlier).run_id, run_record(newest).run_id, "online"}) == 3
    assert (tmp_path / "wandb_run_id.txt").read_text() == "online", "kept for the next start that is online"
    tell(WandbRun(options=WandbOptions()), info_of(tmp_path), events_of(1, 1))
    assert not (tmp_path / "wandb_run_id.txt").exists(), "a run that begins anew is another one"


ONLINE = """
import os, signal, sys, time
from pathlib import Path
from bumblecore_plugins.loggers import WandbOptions
from bumblecore_plugins.loggers.wandb_run import WandbRun
from logger_runs import events_of, info_of, tell
directory, done, last, attempt, ending = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
info = info_of(directory, history=events_of(1, done))
logger = WandbRun(options=WandbOptions())
tell(logger, info, events_of(done + 1, last, attempt=attempt), status=None if ending == "killed" else ending)
if ending == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def online(server: Any, output: Path, *, done: int, last: int, attempt: int, ending: str) -> str:
    """Tells a run to wandb in a process of its own, and gives the run's id back."""
    kept = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # of this process
    env = {
        **kept,
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "0" * 40,
        "PYTHONPATH": str(Path(__file__).parent),
        "HOME": str(output.parent),
    }
    command = [sys.executable, "-c", ONLINE, str(output), str(done), str(last), str(attempt), ending]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == (-9 if ending == "killed" else 0), ended.stderr
    return (output / "wandb_run_id.txt").read_text().strip()


@pytest.mark.slow
def test_online_a_resumed_run_goes_on_in_the_same_run_with_each_step_once(tmp_path):
    with wandb_server() as server:
        first = online(server, tmp_path / "run", done=0, last=7, attempt=0, ending="interrupted")
        assert figures(server.history(first)) == expected(events_of(1, 7))
        second = online(server, tmp_path / "run", done=5, last=9, attempt=1, ending="complete")
        assert second == first
        assert figures(server.history(first)) == expected(events_of(1, 7) + events_of(8, 9, attempt=1))
        anew = online(server, tmp_path / "run", done=0, last=2, attempt=2, ending="complete")
        assert anew != first
        assert figures(server.history(anew)) == expected(events_of(1, 2, attempt=2))


@pytest.mark.slow
def test_online_what_a_killed_process_did_not_send_comes_from_the_history(tmp_path):
    with wandb_server() as server:
        first = online(server, tmp_path / "run", done=0, last=5, attempt=0, ending="killed")
        sent = len(server.rows.get(first, []))
        assert sent < 5
        assert online(server, tmp_path / "run", done=4, last=9, attempt=1, ending="complete") == first
        assert figures(server.history(first)) == expected(events_of(1, 4) + events_of(5, 9, attempt=1))
