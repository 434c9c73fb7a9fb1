"""`metrics.csv`: the complete history as a table, a line for each reported step or evaluation."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from bumblecore_core import RunInfo, RunResult, StepEvent
from bumblecore_core.toolkit.csv_cells import csv_cell
from bumblecore_core.toolkit.history import EVENT_KEYS


class CsvFile:
    """Columns `step`, `epoch`, `split`, `time` (Unix seconds), then the figures in the order in which they first came.

    Numbers are written so that they read back as the same floats; a cell is empty where an event has no such figure or
    its value is not finite. An event with a new figure rewrites the file with a wider header, beside its place, and
    renames it; any other event appends one line. A process that is killed can leave a torn last line at worst; a run
    that is resumed rewrites the file from the history that its checkpoint holds.
    """

    def start(self, *, info: RunInfo) -> None:
        self._path = info.output_dir / "metrics.csv"
        rows = [_row(event) for event in info.history]
        self._columns = list(dict.fromkeys(chain(EVENT_KEYS, *rows)))
        self._rewrite(rows)

    def step(self, *, event: StepEvent) -> None:
        row = _row(event)
        new = [name for name in row if name not in self._columns]
        if not new:
            self._writer.writerow(row)
            self._file.flush()
            return
        self._file.close()
        self._columns += new
        with open(self._path, encoding="utf-8", newline="") as narrower:
            self._rewrite(chain(csv.DictReader(narrower), [row]))

    def saved(self, *, directory) -> None:
        pass

    def finish(self, *, result: RunResult) -> None:
        self._file.close()

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the whole file anew, and leaves it open for lines to come."""
        beside = self._path.with_name(f".{self._path.name}.writing")
        self._file = open(beside, "w", encoding="utf-8", newline="")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, self._columns, restval="", lineterminator="\n")
        self._writer.writeheader()
        self._writer.writerows(rows)
        self._file.flush()
        beside.replace(self._path)


def _row(event: StepEvent) -> dict[str, Any]:
    figures = {csv_cell(name): float(value) if math.isfinite(value) else "" for name, value in event.metrics.items()}
    return {**figures, "step": event.step, "epoch": event.epoch, "split": event.split, "time": event.time}
