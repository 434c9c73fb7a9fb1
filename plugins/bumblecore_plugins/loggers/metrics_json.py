"""`metrics.json`: the complete history as one JSON document that is valid at any moment."""

from __future__ import annotations

import json
import math
import os

from bumblecore_core import RunInfo, RunResult, StepEvent

TAIL = b"\n]\n"


class MetricsJson:
    """A JSON array of objects, one a step or evaluation: `step`, `epoch`, `split` and the metrics.

    Each entry overwrites the closing bracket and writes it anew in a single write, so a reader sees a whole document.
    A value that JSON cannot hold (NaN, infinity) is null.
    """

    def start(self, *, info: RunInfo) -> None:
        self._file = open(info.output_dir / "metrics.json", "wb", buffering=0)  # noqa: SIM115
        self._file.write(b"[" + TAIL)
        self._empty = True

    def step(self, *, event: StepEvent) -> None:
        entry = {"step": event.step, "epoch": round(event.epoch, 6), "split": event.split}
        entry.update({name: value if math.isfinite(value) else None for name, value in event.metrics.items()})
        self._file.seek(-len(TAIL), os.SEEK_END)
        self._file.write((b"\n" if self._empty else b",\n") + json.dumps(entry).encode() + TAIL)
        self._empty = False

    def saved(self, *, directory) -> None:
        pass

    def finish(self, *, result: RunResult) -> None:
        self._file.close()
