"""When a run saves, and how: a snapshot between two steps, files written beside training, a commit by all ranks."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bumblecore_core.config.schema import CheckpointSection
from bumblecore_core.protocols import Engine
from bumblecore_core.run.agree import on_all_ranks
from bumblecore_core.run.checkpoint.folder import checkpoint_path, rotate
from bumblecore_core.run.checkpoint.history import HistoryFile
from bumblecore_core.run.checkpoint.streams import take_streams
from bumblecore_core.run.checkpoint.writing import STATE, ModelParts, commit, rank_directory, write_part
from bumblecore_core.run.files import disk_errors, fresh_beside, writing_path
from bumblecore_core.run.interrupts import SIGNALS, Interrupts, Stopped, received_of_all
from bumblecore_core.run.loggers import Loggers
from bumblecore_core.run.memory import available_memory
from bumblecore_core.run.progress import Progress
from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_core.toolkit.state_files import write_state

MARGIN = 256 * 2**20  # bytes that stay free beside a copy of the state
VOTES = 3 + len(SIGNALS)


@dataclass(kw_only=True)
class SavingTime:
    """How saving went: `checkpoints` committed, seconds that training stood still for them (`stalled`), and seconds in
    which files were written beside it (`background`)."""

    checkpoints: int = 0
    stalled: float = 0.0
    background: float = 0.0


@dataclass(kw_only=True)
class _Writing:
    """A checkpoint whose files are being written by `thread` (or have been, in the foreground: None)."""

    step: int
    temporary: Path
    facts: dict[str, Any]
    thread: threading.Thread | None = None
    failure: Exception | None = None

    @property
    def done(self) -> bool:
        return self.thread is None or not self.thread.is_alive()


class Saver:
    """Saves the run's checkpoints. The loop calls `boundary` whenever everything is between two steps, adds `votes` to
    its all-reduce, hands the sums to `heed`, and calls `save_if_due` once a step is wholly done.

    What is saved is the state at the last boundary: between a window's micro-batches the weights are still those of the
    step before, and the random streams are remembered, so a run can stop there and lose nothing but the begun window.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        output_dir: Path,
        section: CheckpointSection,
        parts: ModelParts,
        lock: dict[str, Any],
        loggers: Loggers,
        progress: Progress,
        history: HistoryFile,
        interrupts: Interrupts,
        pinned: Sequence[Path] = (),
    ) -> None:
        self._engine, self._output_dir, self._section, self._parts = engine, output_dir, section, parts
        self._lock, self._loggers, self._progress, self._interrupts = lock, loggers, progress, interrupts
        self._history, self._pinned = history, tuple(pinned)
        self._saved_step = progress.step
        self._last_save = time.monotonic()
        self._due = False
        self._writing: _Writing | None = None
        self._streams: dict[str, Any] = {}
        self.time = SavingTime()

    def boundary(self) -> None:
        """Remembers the random streams of a moment between two steps."""
        self._streams = take_streams(self._engine.device)

    def votes(self) -> list[float]:
        """What this rank adds to the step's sums: rank 0's clock, signals noted, files written, writing failed."""
        every, writing = self._section.save_every_seconds, self._writing
        waited = every is not None and time.monotonic() - self._last_save >= every
        return [
            float(waited and self._engine.rank == 0),
            *self._interrupts.votes(),
            float(writing is not None and writing.done),
            float(writing is not None and writing.failure is not None),
        ]

    def heed(self, sums: Sequence[float]) -> None:
        """Does what all ranks' votes say: commits what is written, notes a save that is due, ends the run on a signal.

        Raises `Stopped`, and `RunError` where writing failed on any rank. A collective where something is committed.
        """
        time_is_up, *signals, written, failed = sums
        self._due = self._due or bool(time_is_up)
        if failed or (self._writing is not None and written == self._engine.world_size):
            self.finish()
        if number := received_of_all(signals):
            raise Stopped(number)

    def check_interrupt(self) -> None:
        """Raises `Stopped` where any rank noted a signal. A collective."""
        if number := received_of_all(self._engine.sum_over_ranks(self._interrupts.votes())):
            raise Stopped(number)

    def save_if_due(self, total_steps: int) -> None:
        """Saves where the step or the clock says so; at the run's last step too where `save_steps` is set."""
        steps, step = self._section.save_steps, self._progress.step
        if steps is not None and (step % steps == 0 or step == total_steps):
            self._due = True
        if self._due:
            self.save(background=self._section.background and step < total_steps)

    def save(self, *, background: bool) -> None:
        """Snapshots the state of the last boundary and writes it: in another thread with `background`, where the engine
        can copy and memory allows. Nothing is done for a step that is saved already. Collective."""
        self.finish()
        self._due, self._last_save = False, time.monotonic()
        if self._progress.step == self._saved_step:
            return
        started = time.perf_counter()
        self._begin(background=background and self._engine.background_saving and self._room_for_copy())
        self.time.stalled += time.perf_counter() - started
        if self._writing is not None and self._writing.thread is None:
            self.finish()

    def finish(self) -> None:
        """Waits for what is being written, and commits it. Raises `RunError` where it failed on any rank; the earlier
        checkpoints are then as they were. A collective."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        started = time.perf_counter()
        if writing.thread is not None:
            writing.thread.join()
        try:
            on_all_ranks(self._engine, lambda: _raise(writing.failure), "saving a checkpoint")
            on_all_ranks(self._engine, lambda: self._commit(writing), "saving a checkpoint")
        except Exception:
            if self._engine.rank == 0:
                shutil.rmtree(writing.temporary, ignore_errors=True)
            raise
        self._saved_step = writing.step
        self.time.checkpoints += 1
        self.time.stalled += time.perf_counter() - started

    def abandon(self) -> None:
        """Ends without the other ranks' help: one process alone still commits what it has begun, others leave it."""
        if self._engine.world_size == 1:
            self.finish()
        elif self._writing is not None and self._writing.thread is not None:
            self._writing.thread.join()

    def _begin(self, *, background: bool) -> None:
        directory = checkpoint_path(self._output_dir, self._progress.step)

        def make_room() -> None:
            if self._engine.rank == 0:
                with disk_errors(directory):
                    (fresh_beside(directory) / STATE).mkdir()

        on_all_ranks(self._engine, make_room, "saving a checkpoint")
        writing = _Writing(
            step=self._progress.step,
            temporary=writing_path(directory),
            facts=self._facts(),
        )
        write = self._snapshot(copy=background)

        def run() -> None:
            begun = time.perf_counter()
            try:
                write_part(writing.temporary, self._engine.rank, write)
            except Exception as error:
                writing.failure = error
            if background:
                self.time.background += time.perf_counter() - begun

        if background:
            writing.thread = threading.Thread(target=run, name="bumble-checkpoint", daemon=True)
            writing.thread.start()
        else:
            run()
        self._writing = writing

    def _snapshot(self, *, copy: bool) -> Callable[[Path], None]:
        """A function that writes this rank's part into a temporary directory. A collective."""
        rank, streams = self._engine.rank, self._streams
        weights = self._engine.model_state(wanted=self._parts.wanted, copy=copy)
        write_engine_state = self._engine.training_state(copy=copy)
        exact, events = self._progress.to_state(), self._progress.take_events()

        def write(temporary: Path) -> None:
            own = rank_directory(temporary, rank)
            if rank == 0:
                self._parts.write(temporary, weights)
                write_state(temporary / STATE, "progress", exact)
                write_state(temporary / STATE, "history", self._history.append(events))
                write_state(temporary / STATE, "lock", self._lock)
            write_engine_state(own)
            write_state(own, "streams", streams)

        return write

    def _facts(self) -> dict[str, Any]:
        progress = self._progress
        facts: dict[str, Any] = {"step": progress.step, "epoch": progress.epoch, "world_size": self._engine.world_size}
        if progress.evaluated == progress.step and math.isfinite(progress.evaluation_loss):
            facts["evaluation_loss"] = progress.evaluation_loss
        return facts

    def _commit(self, writing: _Writing) -> None:
        if self._engine.rank != 0:
            return
        directory = checkpoint_path(self._output_dir, writing.step)
        commit(writing.temporary, directory, world_size=self._engine.world_size, facts=writing.facts)
        with disk_errors(directory):
            rotate(self._output_dir, limit=self._section.save_total_limit, pinned=[*self._pinned, directory])
        self._loggers.saved(directory)

    def _room_for_copy(self) -> bool:
        """Whether every rank has the memory to hold the state a second time: weights, masters and two moments. Of a
        model with an adapter no frozen weight is copied. Ranks that copy a part each may share one machine's memory,
        so each of them looks for room for all parts."""
        free = available_memory()
        everything = self._parts.adapter is None
        parameters = [one for one in self._parts.model.parameters() if everything or one.requires_grad]
        size = 0
        if self._engine.rank == 0:
            size += sum(whole_shape(one).numel() * one.element_size() for one in parameters)
        sharded: tuple[str, ...] = getattr(self._engine, "sharded", ())
        if self._engine.rank == 0 or sharded:
            size += sum(12 * whole_shape(one).numel() for one in parameters if one.requires_grad)
        fits = free is not None and size * 1.1 + MARGIN <= free
        return self._engine.sum_over_ranks([float(fits)])[0] == self._engine.world_size


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure
