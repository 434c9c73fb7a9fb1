"""The metric history on disk: one append-only file for a run, in which each checkpoint keeps its position.

So the size of a checkpoint does not grow with the steps of the run. Events are appended and synced before a checkpoint
is committed. What follows a checkpoint's position belongs to later checkpoints, or to one that was never committed; the
first append after a resume cuts it off.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bumblecore_core.errors import CODES, RunError
from bumblecore_core.run.checkpoint.writing import STATE
from bumblecore_core.run.console import say
from bumblecore_core.run.files import write_synced, writing_path
from bumblecore_core.toolkit.disk import sync
from bumblecore_core.toolkit.history import HISTORY_FILE, read_events
from bumblecore_core.toolkit.state_files import read_state
from bumblecore_core.values import StepEvent

HISTORY_LOG = "history.jsonl"
CHECK = b', "crc32": "'


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a checkpoint's events end. `id`: of the file, since another run may have replaced it; `size`: bytes before
    the position; `events`: lines before it."""

    id: int
    size: int
    events: int


class HistoryFile:
    """`history.jsonl` of an output directory, for rank 0: an event a line, with a checksum of its own."""

    def __init__(
        self, output_dir: Path, *, carried: Iterable[StepEvent] = (), position: Position | None = None
    ) -> None:
        """`position`: go on there; None: replace the file at the first `append`, with the events `carried` first."""
        self._path, self._carried = output_dir / HISTORY_LOG, list(carried)
        self._at = position or Position(id=secrets.randbits(32), size=0, events=0)

    def append(self, events: Iterable[StepEvent]) -> dict[str, int]:
        """Writes and syncs events; the `Position` after them, as plain data. Raises `OSError`."""
        everything = [*self._carried, *events]
        lines = b"".join(_line(event, self._at.id) for event in everything)
        if self._at.size and not self._reaches():
            say(f"warning: BC077 {CODES['BC077']}: {self._path} was removed or truncated while the run went on")
            self._at = Position(id=self._at.id, size=0, events=0)
        if self._at.size:
            with self._path.open("r+b") as file:
                file.seek(self._at.size)
                file.truncate()
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        elif lines:
            beside = writing_path(self._path)
            write_synced(beside, lines)
            beside.replace(self._path)
            sync(self._path.parent)
        self._carried = []
        self._at = Position(id=self._at.id, size=self._at.size + len(lines), events=self._at.events + len(everything))
        return dict(vars(self._at))

    def _reaches(self) -> bool:
        try:
            return self._path.stat().st_size >= self._at.size
        except OSError:
            return False


def resume_history(checkpoint: Path, step: int, output_dir: Path) -> tuple[HistoryFile, list[StepEvent], list[str]]:
    """(the file that a run resumed in `output_dir` appends to, the events up to `checkpoint` of `step`, warnings).

    The file is next to the checkpoint, or in `output_dir` if only the checkpoint was moved. If it is damaged or
    missing, what is left of it or of `metrics.json` is used: no run fails because of its history.
    """
    saved = read_state(checkpoint / STATE, "history")
    if isinstance(saved, list):  # an earlier version kept all events in the checkpoint
        events = [StepEvent(**event) for event in saved]
        return HistoryFile(output_dir, carried=events), events, []
    position, recovered = Position(**saved), []
    for directory in dict.fromkeys([checkpoint.parent, checkpoint.resolve().parent, output_dir]):
        events, intact = _read(directory / HISTORY_LOG, position)
        if intact and directory.resolve() == output_dir.resolve():
            return HistoryFile(output_dir, position=position), events, []
        if intact:
            return HistoryFile(output_dir, carried=events), events, []
        recovered += [events, _logged(directory / HISTORY_FILE, position)]
    events = [event for event in max(recovered, key=len) if event.step <= step]
    lost = f"{position.events - len(events):,} of {position.events:,} entries are lost"
    warning = f"BC077 {CODES['BC077']}: {checkpoint.parent / HISTORY_LOG} is missing or damaged, {lost}"
    return HistoryFile(output_dir, carried=events), events, [warning]


def _read(path: Path, position: Position) -> tuple[list[StepEvent], bool]:
    """(the undamaged events before `position`, whether these are all). Lines of another file do not count as
    undamaged."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            lines = file.read(position.size).splitlines(keepends=True)
    except OSError:
        return [], position.size == 0
    events = [event for line in lines if (event := _event(line, position.id)) is not None]
    return events, len(events) == len(lines) == position.events


def _logged(path: Path, position: Position) -> list[StepEvent]:
    """The same events as the logger `metrics_json` wrote them, rounded in epoch and time."""
    with suppress(RunError, RecursionError):
        return read_events(path)[: position.events]
    return []


def _line(event: StepEvent, seed: int) -> bytes:
    plain = {"step": event.step, "epoch": event.epoch, "split": event.split, "time": event.time}
    body = json.dumps({**plain, "metrics": dict(event.metrics)}).encode()
    return body[:-1] + CHECK + b'%08x"}\n' % zlib.crc32(body, seed)


def _event(line: bytes, seed: int) -> StepEvent | None:
    head, _, check = line.rpartition(CHECK)
    body = head + b"}"
    return StepEvent(**json.loads(body)) if check == b'%08x"}\n' % zlib.crc32(body, seed) else None
