"""A saver with a scripted clock, engine and memory, and the steps of a run around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from bumblecore_core.config.schema import CheckpointSection
from bumblecore_core.run.checkpoint import saver as saver_module
from bumblecore_core.run.checkpoint.history import HistoryFile
from bumblecore_core.run.checkpoint.saver import Saver
from bumblecore_core.run.interrupts import Interrupts
from bumblecore_core.run.loggers import Loggers
from bumblecore_core.run.progress import Progress
from bumblecore_core.toolkit.state_files import write_state
from bumblecore_core.values import StepEvent

LOCK = {"world_size": 1}


@dataclass(kw_only=True)
class Engine:
    """Holds one weight that training changes in place. `others`: what the other ranks add to each sum; `copies`: what
    each snapshot was asked for."""

    rank: int = 0
    world_size: int = 1
    background_saving: bool = True
    sharded: tuple[str, ...] = ()
    others: Callable[[Sequence[float]], Sequence[float]] = lambda values: [0.0] * len(values)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    weight: torch.Tensor = field(default_factory=lambda: torch.zeros(3))
    copies: list[bool] = field(default_factory=list)

    def model_state(self, *, wanted, copy=False):
        self.copies.append(copy)
        return {"weight": self.weight.clone() if copy else self.weight}

    def training_state(self, *, copy):
        moment = self.weight.clone() if copy else self.weight
        return lambda directory: write_state(directory, "engine", {"moment": moment})

    def sum_over_ranks(self, values):
        return [mine + other for mine, other in zip(values, self.others(values), strict=True)]

    def barrier(self):
        pass


@dataclass(kw_only=True)
class Parts:
    """Writes the weights once `gate` is open. `failure`: raised in place of that."""

    model: torch.nn.Module = field(default_factory=torch.nn.Module)
    adapter: Any = None
    wanted: Any = None
    failure: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)

    def write(self, directory: Path, state: dict[str, torch.Tensor]) -> None:
        assert self.gate.wait(60)
        if self.failure is not None:
            raise self.failure
        save_file(state, directory / "model.safetensors")


class Recorder:
    """A logger that keeps what it is passed."""

    def __init__(self) -> None:
        self.directories: list[Path] = []

    def saved(self, *, directory):
        self.directories.append(directory)


class Run:
    """A saver and what it was made with. `clock.now`: seconds; `free`: bytes of memory."""

    def __init__(self, monkeypatch, directory, *, engine=None, progress=None, free=2**40, pinned=(), **section) -> None:
        self.directory, self.engine = directory, engine or Engine()
        self.progress, self.parts, self.recorder = progress or Progress(), Parts(), Recorder()
        self.clock, self.free = SimpleNamespace(now=0.0), free
        self.parts.gate.set()
        clock = SimpleNamespace(monotonic=lambda: self.clock.now, perf_counter=time.perf_counter)
        monkeypatch.setattr(saver_module, "time", clock)
        monkeypatch.setattr(saver_module, "available_memory", lambda: self.free)
        self.saver = Saver(
            engine=self.engine,
            output_dir=directory,
            section=CheckpointSection(**{"save_every": None, "save_total_limit": None, "background": False, **section}),
            parts=self.parts,
            lock=LOCK,
            loggers=Loggers([("recorder", self.recorder)]),
            progress=self.progress,
            history=HistoryFile(directory),
            interrupts=Interrupts(speak=False),
            pinned=pinned,
        )

    @property
    def saved(self) -> list[int]:
        """The steps of the checkpoints that are there."""
        return sorted(int(path.name.partition("-")[2]) for path in self.directory.glob("checkpoint-*"))

    def step(self) -> None:
        """An optimizer step up to the boundary after it: it changes the weight in place and logs an event."""
        self.progress.step += 1
        self.engine.weight += 1.0
        self.progress.events.append(
            StepEvent(step=self.progress.step, epoch=0.0, split="train", time=0.0, metrics={"loss": 1.0})
        )
        self.saver.boundary()

    def train(self, total: int, *, seconds: float = 0.0) -> None:
        """Steps up to `total`, each of which takes `seconds` on the clock."""
        while self.progress.step < total:
            self.clock.now += seconds
            self.step()
            self.saver.heed(self.engine.sum_over_ranks(self.saver.votes()))
            self.saver.save_if_due(total)
        self.saver.finish()
