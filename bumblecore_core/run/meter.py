"""What a reported event says of training: figures averaged over the steps since the event before."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bumblecore_core.run.progress import Progress
from bumblecore_core.toolkit.figures import is_core


@dataclass(kw_only=True)
class Spent:
    """What optimizer steps took: wall seconds, tokens and supervised positions of all ranks (their number, not the sum
    of their weights), FLOPs of all ranks, seconds that a rank waited for data on average."""

    seconds: float = 0.0
    tokens: float = 0.0
    supervised: float = 0.0
    flops: float = 0.0
    waited: float = 0.0

    def add(self, other: Spent) -> None:
        """Adds another step's."""
        self.seconds += other.seconds
        self.tokens += other.tokens
        self.supervised += other.supervised
        self.flops += other.flops
        self.waited += other.waited


class Meter:
    """Collects steps (`add`) and gives an event's metrics (`take`).

    A figure is the mean over the steps in which it was finite, unless it is one of those that count up or hold as they
    are (`latest`). Sums lie in `progress.pending`, so that a run that is resumed between two events reports the same.
    `peak_flops`: FLOP/s of all devices together; 0 leaves the utilization out.
    """

    def __init__(self, progress: Progress, *, peak_flops: float = 0.0) -> None:
        self._progress, self._peak_flops = progress, peak_flops
        self._spent, self._steps, self._memory = Spent(), 0, 0.0

    def add(self, figures: Mapping[str, float], *, latest: Collection[str], spent: Spent, memory: float) -> None:
        """Takes notice of an optimizer step. `memory`: the highest of any rank so far, in bytes."""
        pending = self._progress.pending
        for name, value in figures.items():
            total, steps = (0.0, 0) if name in latest else pending.get(name, (0.0, 0))
            finite = math.isfinite(value)
            keep = finite or name in latest
            pending[name] = (total + value if keep else total, steps + keep)
        self._spent.add(spent)
        self._steps += 1
        self._memory = memory

    def take(self) -> dict[str, float]:
        """The metrics since the last call, the core's own first."""
        means = {name: total / steps if steps else math.nan for name, (total, steps) in self._progress.pending.items()}
        spent, steps = self._spent, self._steps
        self._progress.pending.clear()
        self._spent, self._steps = Spent(), 0
        seconds = max(spent.seconds, 1e-9)
        speed = {
            "tokens_per_second": spent.tokens / seconds,
            "supervised_tokens_per_second": spent.supervised / seconds,
            "steps_per_second": steps / seconds,
            "data_wait": spent.waited / seconds,
        }
        if self._peak_flops and spent.flops:
            speed["mfu"] = spent.flops / seconds / self._peak_flops
        if self._memory:
            speed["peak_memory_gb"] = self._memory / 1e9
        core = {name: value for name, value in means.items() if is_core(name)}
        return {**core, **speed, **{name: value for name, value in means.items() if not is_core(name)}}
