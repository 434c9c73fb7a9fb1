"""Batches of the evaluation data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bumblecore_core.run.assemble import Prepared
from bumblecore_core.run.data.loader import collate
from bumblecore_core.run.data.plan import MicroBatch
from bumblecore_core.values import Batch


def evaluation_batches(prepared: Prepared, rank: int) -> Callable[[], Iterator[tuple[MicroBatch, Batch]]] | None:
    """A fresh pass over the evaluation rows of one rank at each call; None without evaluation data."""
    plan = prepared.eval_plan
    if plan is None:
        return None

    def batches() -> Iterator[tuple[MicroBatch, Batch]]:
        for window in plan.windows():
            for micro in window.micro_batches[rank]:
                yield micro, collate(prepared.eval_store, prepared.stage, micro.rows)

    return batches
