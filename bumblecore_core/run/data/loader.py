"""Micro-batches of one rank, in the plan's order, through torch's DataLoader."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from bumblecore_core.errors import BumbleError, RunError, one
from bumblecore_core.protocols import Stage
from bumblecore_core.run.data.plan import BatchPlan, MicroBatch, Window
from bumblecore_core.run.data.workers import follow_parent, signals_held
from bumblecore_core.toolkit.token_weights import as_count
from bumblecore_core.values import Batch

if TYPE_CHECKING:
    from bumblecore_core.run.data.store import TokenStore


DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.*)\. |exited unexpectedly)")
OUT_OF_SHARED_MEMORY = re.compile(r"out of shared memory|file </torch_")


class _Collated(Dataset[Batch | BumbleError]):
    """Looks a `MicroBatch` up in the token shards; what travels to a worker is the plan's rows, not tokens."""

    def __init__(self, store: TokenStore, stage: Stage) -> None:
        self.store, self.stage = store, stage

    def __getitem__(self, micro_batch: MicroBatch) -> Batch | BumbleError:
        try:
            return collate(self.store, self.stage, micro_batch.rows)
        except BumbleError as error:  # as a value: of one that is raised in a worker, torch keeps the text only
            return error


class _RankOrder(Sampler[MicroBatch]):
    def __init__(self, plan: BatchPlan, start: int, rank: int) -> None:
        self.plan, self.start, self.rank = plan, start, rank

    def __iter__(self) -> Iterator[MicroBatch]:
        for window in self.plan.windows(self.start):
            yield from window.micro_batches[self.rank]


def collate(store: TokenStore, stage: Stage, rows: Sequence[int]) -> Batch:
    """The stage's padding-free batch of these rows of the store."""
    return stage.collate(
        examples=[store.example(row) for row in rows], rows=rows, counts=[as_count(store.counts[row]) for row in rows]
    )


def rank_windows(
    *, store: TokenStore, stage: Stage, plan: BatchPlan, rank: int, num_workers: int, pin_memory: bool, start: int = 0
) -> Iterator[tuple[Window, Iterator[tuple[MicroBatch, Batch]]]]:
    """(window, its micro-batches on this rank) from step `start` on. The number of workers changes no number."""
    loader = DataLoader(
        _Collated(store, stage),
        batch_size=None,
        sampler=_RankOrder(plan, start, rank),
        num_workers=num_workers,
        worker_init_fn=follow_parent,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own: making the iterator must not draw from the model's random stream
    )
    with signals_held():
        batches = iter(loader)
    for window in plan.windows(start):
        yield window, ((micro_batch, _next(batches)) for micro_batch in window.micro_batches[rank])


def _next(batches: Iterator[Batch | BumbleError]) -> Batch:
    try:
        batch = next(batches)
    except (ConnectionError, EOFError) as error:  # a worker died while it handed a batch over
        raise _died("a DataLoader worker ended unexpectedly") from error
    if isinstance(batch, BumbleError):
        raise batch
    return batch


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Turns the death of a DataLoader worker, which torch raises wherever this process is, into `RunError`: BC078, or
    BC045 where there was no room in shared memory."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        died = DIED.search(text)
        if OUT_OF_SHARED_MEMORY.search(text):
            _expect_more_deaths()
            problem = "a DataLoader worker found no room in shared memory for a batch"
            fix = "Enlarge it (docker run --shm-size=1g), or set data.num_workers to 0"
            raise one(RunError, "BC045", problem, fix, place="/dev/shm", field="data.num_workers") from error
        if died is None:
            raise
        how = f"was killed by a signal ({died[2]})" if died[2] else "ended unexpectedly"
        raise _died(f"a DataLoader worker (process {died[1]}) {how}") from error


def _died(problem: str) -> BumbleError:
    _expect_more_deaths()
    fix = (
        "Check dmesg for the out-of-memory killer, and the size of /dev/shm. Set data.num_workers to fewer workers or "
        "to 0. The same command resumes the run"
    )
    return one(RunError, "BC078", problem, fix, field="data.num_workers")


def _expect_more_deaths() -> None:
    """torch's handler of SIGCHLD raises for each worker that dies, also in the middle of what ends the run."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
