"""Micro-batches of one rank, in the plan's order, through torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from bumblecore_core.protocols import Stage
from bumblecore_core.run.data.plan import BatchPlan, MicroBatch, Window
from bumblecore_core.values import Batch

if TYPE_CHECKING:
    from bumblecore_core.run.data.store import TokenStore


class _Collated(Dataset[Batch]):
    """Looks a `MicroBatch` up in the token shards; what travels to a worker is the plan's rows, not tokens."""

    def __init__(self, store: TokenStore, stage: Stage) -> None:
        self.store, self.stage = store, stage

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        return collate(self.store, self.stage, micro_batch.rows)


class _RankOrder(Sampler[MicroBatch]):
    def __init__(self, plan: BatchPlan, start: int, rank: int) -> None:
        self.plan, self.start, self.rank = plan, start, rank

    def __iter__(self) -> Iterator[MicroBatch]:
        for window in self.plan.windows(self.start):
            yield from window.micro_batches[self.rank]


def collate(store: TokenStore, stage: Stage, rows: Sequence[int]) -> Batch:
    """The stage's padding-free batch of these rows of the store."""
    return stage.collate(
        examples=[store.example(row) for row in rows], rows=rows, counts=[int(store.counts[row]) for row in rows]
    )


def rank_windows(
    *, store: TokenStore, stage: Stage, plan: BatchPlan, rank: int, num_workers: int, pin_memory: bool, start: int = 0
) -> Iterator[tuple[Window, Iterator[tuple[MicroBatch, Batch]]]]:
    """(window, its micro-batches on this rank) from step `start` on. The number of workers changes no number."""
    batches = iter(
        DataLoader(
            _Collated(store, stage),
            batch_size=None,
            sampler=_RankOrder(plan, start, rank),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its own: making the iterator must not draw from the model's random stream
        )
    )
    for window in plan.windows(start):
        yield window, ((micro_batch, next(batches)) for micro_batch in window.micro_batches[rank])
