"""`logs/train.log`: the start summary, every reported step, what was saved and how the run ended."""

from __future__ import annotations

import logging

from bumblecore_core import RunInfo, RunResult, StepEvent
from bumblecore_core.toolkit.summary import summary_lines


class LogFile:
    """Appends to `output_dir/logs/train.log`, each line with its time."""

    def start(self, *, info: RunInfo) -> None:
        path = info.output_dir / "logs" / "train.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = logging.FileHandler(path, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        for line in summary_lines(info):
            self._write(line)

    def step(self, *, event: StepEvent) -> None:
        figures = " ".join(f"{name}={value:.6g}" for name, value in event.metrics.items())
        self._write(f"{event.split} step={event.step} epoch={event.epoch:.4f} {figures}")

    def saved(self, *, directory) -> None:
        self._write(f"saved {directory}")

    def finish(self, *, result: RunResult) -> None:
        self._write(f"{result.status} after {result.steps} steps and {result.seconds:.1f} s")
        self._handler.close()

    def _write(self, line: str) -> None:
        self._handler.emit(logging.LogRecord("bumble", logging.INFO, "", 0, line, None, None))
