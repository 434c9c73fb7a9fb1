"""Two ranks of the training loop as two threads, with scripted losses, learning rates and clocks."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import numpy as np
import torch

from bumblecore_core.run import loop
from bumblecore_core.run.checkpoint.saver import VOTES
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.run.loggers import Loggers
from bumblecore_core.run.progress import Progress
from bumblecore_core.values import Batch, StepOutput, StepResult

RANKS = 2
FORWARD, STEP, EVALUATION, SAVING = 2.0, 1.0, 100.0, 1000.0  # seconds on the scripted clock
LENGTHS = np.asarray([3 + row % 5 for row in range(39)], dtype=np.int32)
COUNTS = LENGTHS - 2


def loss_of(row: int) -> float:
    """The summed loss of a row, which is also its gradient."""
    return float(row + 1)


def rate_at(step: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0."""
    return 1.0 / (step + 1)


class Clock(threading.local):
    """Each rank's own time, which only the script moves."""

    now = 0.0


class Group:
    """Sums values over the threads."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(RANKS, timeout=30)
        self._values: list[list[float]] = [[] for _ in range(RANKS)]

    def sum(self, rank: int, values: list[float]) -> list[float]:
        self._values[rank] = [float(value) for value in values]
        self._barrier.wait()
        total = [sum(column) for column in zip(*self._values, strict=True)]
        self._barrier.wait()
        return total


@dataclass(kw_only=True)
class Engine:
    """Trains a scalar: a row's gradient is `loss_of(row)`. `poison`: (step, rank) pairs whose loss is not finite."""

    rank: int
    group: Group
    clock: Clock
    poison: frozenset[tuple[int, int]]
    world_size: int = RANKS
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    gradient: float = 0.0
    advanced: int = 0
    steps: list[float] = field(default_factory=list)
    plateau: list[float] = field(default_factory=list)

    def forward_backward(self, *, batch, scale, last):
        self.clock.now += FORWARD
        loss = sum(map(loss_of, batch.rows))
        self.gradient += loss * scale if scale else 0.0
        if (len(self.steps), self.rank) in self.poison:
            loss = math.nan  # of a finite gradient: the loop must refuse the step
        return StepOutput(loss_sum=torch.tensor(loss), count=batch.count)

    def evaluate(self, *, batch):
        self.clock.now += EVALUATION
        return StepOutput(loss_sum=torch.tensor(sum(map(loss_of, batch.rows))), count=batch.count)

    def step(self, *, gradient_scale):
        self.clock.now += STEP
        gradient = self.group.sum(self.rank, [self.gradient])[0] * gradient_scale
        self.gradient = 0.0
        self.steps.append(gradient)
        return StepResult(grad_norm=abs(gradient), skipped=not math.isfinite(gradient))

    def advance_schedule(self, *, metric):
        if metric is None:
            self.advanced += 1
        else:
            self.plateau.append(metric)

    def learning_rates(self):
        return {"all": rate_at(self.advanced)}

    def sum_over_ranks(self, values):
        return self.group.sum(self.rank, values)


@dataclass(kw_only=True)
class Saver:
    """Counts what the loop asks of it; saving takes time on the clock."""

    clock: Clock
    checks: int = 0
    boundaries: int = 0

    def boundary(self):
        self.boundaries += 1

    def votes(self):
        return [0.0] * VOTES

    def heed(self, sums):
        assert sums == [0.0] * VOTES

    def save_if_due(self, total_steps):
        self.clock.now += SAVING

    def check_interrupt(self):
        self.checks += 1


class Recorder:
    def __init__(self):
        self.events = []

    def step(self, *, event):
        self.events.append(event)


@dataclass(kw_only=True)
class Outcome:
    """What one rank ended with."""

    engine: Engine
    saver: Saver
    progress: Progress
    events: list
    error: Exception | None = None


def make_plan(*, steps=None, accumulation=2):
    return BatchPlan(
        lengths=LENGTHS,
        counts=COUNTS,
        rows=np.arange(len(LENGTHS)),
        options=PlanOptions(
            micro_batch_size=1,
            gradient_accumulation_steps=accumulation,
            world_size=RANKS,
            seed=0,
            packing=False,
            max_length=8,
        ),
        epochs=None if steps else 1.0,
        max_steps=steps,
    )


def batch_of(micro):
    empty = torch.zeros(1, 1)
    lengths = tuple(int(LENGTHS[row]) for row in micro.rows)
    return Batch(
        input_ids=empty,
        position_ids=empty,
        cu_seqlens=empty,
        document_lengths=lengths,
        rows=micro.rows,
        count=micro.count,
    )


def run_ranks(monkeypatch, *, plan, waits=(0.0, 0.0), memory=(1e9, 1e9), poison=(), progress=None, **options):
    """Both ranks' outcomes. `waits`: seconds for which each rank waits for a micro-batch; `progress`: makes each rank's
    own."""
    clock, group = Clock(), Group()
    place = threading.local()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(loop, "peak_memory", lambda _: memory[place.rank])
    settings = {"eval_steps": None, "average_tokens_across_devices": True, "max_skipped_steps": 1, "logging_steps": 1}
    settings |= {"total_steps": plan.total_steps, "locate": lambda row: f"data.json:{row + 1}"}
    outcomes: list[Outcome | None] = [None] * RANKS

    def batches(window, rank):
        for micro in window.micro_batches[rank]:
            clock.now += waits[rank]
            yield micro, batch_of(micro)

    def run(rank):
        place.rank, clock.now = rank, 0.0
        recorder = Recorder()
        engine = Engine(rank=rank, group=group, clock=clock, poison=frozenset(poison))
        own = Progress() if progress is None else progress()
        outcome = Outcome(engine=engine, saver=Saver(clock=clock), progress=own, events=recorder.events)
        outcomes[rank] = outcome

        def evaluation():
            for window in make_plan().windows():
                yield from ((micro, batch_of(micro)) for micro in window.micro_batches[rank])

        try:
            loop.train(
                engine=engine,
                windows=((window, batches(window, rank)) for window in plan.windows(own.step)),
                evaluation=evaluation if "eval_steps" in options else None,
                loggers=Loggers([("recorder", recorder)]),
                options=loop.LoopOptions(**{**settings, **options}),
                progress=own,
                saver=outcome.saver,
            )
        except Exception as error:
            outcome.error = error  # the other rank meets it too, or its barrier breaks

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert all(outcomes)
    return outcomes
