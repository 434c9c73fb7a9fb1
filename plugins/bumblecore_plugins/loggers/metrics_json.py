"""`metrics.json`: the complete history as one JSON document that is valid at any moment."""

from __future__ import annotations

import json
import math
import os

from bumblecore_core import RunInfo, RunResult, StepEvent

TAIL = b"\n]\n"


class MetricsJson:
    """A JSON array of objects, one a reported step or evaluation: `step`, `epoch`, `split`, `time` and the metrics.

    A run that is resumed begins with the history that its checkpoint holds: steps that were done after it and are done
    again appear once. Each entry overwrites the closing bracket and writes it anew in a single write, so a reader sees
    a whole document.
    A value that JSON cannot hold (NaN, infinity) is null.
    """

    def start(self, *, info: RunInfo) -> None:
        path = info.output_dir / "metrics.json"
        temporary = path.with_name(".metrics.json.writing")
        entries = ",".join(f"\n{_entry(event)}" for event in info.history)
        temporary.write_bytes(b"[" + entries.encode() + TAIL)
        temporary.replace(path)
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        self._empty = not entries

    def step(self, *, event: StepEvent) -> None:
        self._file.seek(-len(TAIL), os.SEEK_END)
        self._file.write((b"\n" if self._empty else b",\n") + _entry(event).encode() + TAIL)
        self._empty = False

    def saved(self, *, directory) -> None:
        pass

    def finish(self, *, result: RunResult) -> None:
        self._file.close()


def _entry(event: StepEvent) -> str:
    entry = {"step": event.step, "epoch": round(event.epoch, 6), "split": event.split, "time": round(event.time, 3)}
    entry.update({name: value if math.isfinite(value) else None for name, value in event.metrics.items()})
    return json.dumps(entry)
