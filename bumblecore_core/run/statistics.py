"""What a stage sums over all rows of an optimizer step before it computes the first of them with a gradient.

Some losses compare each row with a figure of the whole step (the KL estimate of KTO). If it were that of a micro-batch,
a row's loss would depend on how rows are dealt to micro-batches and ranks. So the step's micro-batches go through the
model twice: first without gradients, for the sums, which all ranks add up, and then as usual.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from bumblecore_core.protocols import Engine
from bumblecore_core.run.data.plan import MicroBatch
from bumblecore_core.run.module import TrainModule
from bumblecore_core.values import Batch

STATISTICS_STEP = "statistics_step"
Micro = tuple[MicroBatch, Batch]


@dataclass(frozen=True)
class Statistics:
    """The figures that a stage names in `statistics`, and what computes them."""

    names: tuple[str, ...]
    engine: Engine
    module: TrainModule

    def totals(self, micros: Iterable[Micro]) -> dict[str, float]:
        """The sums over the rows of this rank's `micros` and of all other ranks', in float64. A collective: each rank
        has as many micro-batches."""
        sums = dict.fromkeys(self.names, 0.0)
        with self.module.asking(STATISTICS_STEP):
            for micro, batch in micros:
                figures = self.engine.evaluate(batch=batch.to(self.engine.device)).per_example
                if micro.counts:
                    for name in self.names:
                        sums[name] += float(figures[name])
        return dict(zip(self.names, self.engine.sum_over_ranks(list(sums.values())), strict=True))

    def complete(self, micros: Sequence[Micro]) -> list[Micro]:
        """One step's micro-batches, each with the step's sums among its extras. A collective."""
        totals = self.totals(micros)
        return [(micro, with_totals(batch, totals)) for micro, batch in micros]


def with_totals(batch: Batch, totals: dict[str, float]) -> Batch:
    """The batch with these sums among its extras, as float64 scalars."""
    extras = {name: torch.tensor(value, dtype=torch.float64) for name, value in totals.items()}
    return replace(batch, extras={**batch.extras, **extras})


def statistics_of(engine: Engine, module: TrainModule) -> Statistics | None:
    """The statistics of the run's stage; None where it has none."""
    names = tuple(getattr(module.stage, "statistics", ()))
    return Statistics(names, engine, module) if names else None
