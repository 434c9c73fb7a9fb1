"""A progress bar on a terminal; plain lines, at most one every few seconds, anywhere else."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from bumblecore_core import RunInfo, RunResult, StepEvent
from bumblecore_core.errors import printable

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Steps done, steps/s and time left from tqdm; loss, learning rate and tokens/s beside them."""

    def __init__(self) -> None:
        self._bar = None
        self._total = 0
        self._said = 0.0

    def start(self, *, info: RunInfo) -> None:
        self._total = info.total_steps
        self._started = time.monotonic()
        self._first = info.first_step
        if sys.stderr.isatty():
            self._bar = tqdm(total=info.total_steps, initial=info.first_step, unit="step", dynamic_ncols=True)

    def step(self, *, event: StepEvent) -> None:
        if event.split == "eval":
            self._say(f"step {event.step}: evaluation loss {event.metrics['loss']:.4f}")
            return
        figures = _figures(event)
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(event.step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES or event.step == self._total:
            self._said = now
            per_step = (now - self._started) / max(1, event.step - self._first)
            left = tqdm.format_interval(per_step * (self._total - event.step))
            self._say(f"step {event.step}/{self._total} ({1 / per_step:.2f} steps/s, {left} left) {figures}")

    def saved(self, *, directory) -> None:
        self._say(f"saved {directory}")

    def finish(self, *, result: RunResult) -> None:
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        tqdm.write(printable(line), file=sys.stderr)


def _figures(event: StepEvent) -> str:
    metrics = event.metrics
    parts = [f"loss {metrics['loss']:.4f}", f"lr {metrics['learning_rate']:.2e}"]
    parts += [f"{metrics['tokens_per_second']:,.0f} tokens/s", f"epoch {event.epoch:.2f}"]
    if metrics.get("skipped_steps"):
        parts.append(f"skipped {metrics['skipped_steps']:.0f}")
    return ", ".join(parts)
