"""torch's elastic agent, for processes that end by themselves where they can."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from bumblecore_core.run.console import silence_if_dead
from bumblecore_core.run.interrupts import handle_signals, restore_signals

GRACE = 20.0  # seconds that the other ranks have to end once one has failed: they may save nothing any more
HURRY = 3.0  # seconds that all ranks have after a second Ctrl-C
LOOKS_EVERY = 0.1  # seconds between two looks at the ranks
HERE = "127.0.0.1"  # and not this machine's name, which may not resolve without a network


class Agent(LocalElasticAgent):
    """Runs one command in several processes on this machine, once.

    torch's own agent sends SIGTERM to all ranks as soon as one of them has ended with an error, and when it gets a
    signal itself, it kills ranks that take longer than a fixed time to save. Here a rank gets a signal only where the
    user sent one to the launcher, and once; ranks that another one's failure leaves hanging are killed after `GRACE`.

    `ended`: rank → exit code (negative for a signal) and the time when that was noticed; those killed here are in
    `killed`, and perhaps not there. `received`: the first signal that the launcher got, else 0. `hurried`: a second
    Ctrl-C came.
    """

    def __init__(self, command: Sequence[str], processes: int, place: Path) -> None:
        rendezvous = RendezvousParameters(
            backend="c10d",
            endpoint=f"{HERE}:0",  # a port that the system chooses
            run_id=uuid.uuid4().hex,
            min_nodes=1,
            max_nodes=1,
            local_addr=HERE,
            is_host=True,
        )
        spec = WorkerSpec(
            role="bumble",
            local_world_size=processes,
            entrypoint=command[0],
            args=tuple(part.replace("$", "$$") for part in command[1:]),  # torch fills in ${local_rank}
            rdzv_handler=get_rendezvous_handler(rendezvous),
            max_restarts=0,
            monitor_interval=LOOKS_EVERY,
            local_addr=HERE,
        )
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(place / "agent")))
        self.processes = processes
        self.place = place
        self.ended: dict[int, tuple[int, float]] = {}
        self.killed: set[int] = set()
        self.received = 0
        self.hurried = False
        self._started = False
        self._to_forward: list[int] = []
        self._deadline: float | None = None

    def until_all_ended(self) -> None:
        """Starts the ranks and comes back when none is left."""
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
        with self._signals():
            try:
                self.run()
            finally:
                self._worker_group.spec.rdzv_handler.shutdown()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        self._started = True
        return dict(super()._start_workers(worker_group))

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Healthy until all ranks have ended, be it with an error: only then does torch's agent get to see them."""
        running = self._look()
        while self._to_forward:
            number = self._to_forward.pop(0)
            for pid in running.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        if running and self._late():
            self.killed |= running.keys()
            for pid in running.values():
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # with the workers of its data loader
            running = {}
        if running:
            return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _look(self) -> dict[int, int]:
        """Notes who ended; rank → process id of the others."""
        context = self._pcontext
        assert isinstance(context, SubprocessContext)
        processes = {rank: handler.proc for rank, handler in context.subprocess_handlers.items()}
        for rank, process in processes.items():
            code = process.poll()
            if code is not None and rank not in self.ended:
                self.ended[rank] = (code, time.time())
        return {rank: process.pid for rank, process in processes.items() if rank not in self.ended}

    def _late(self) -> bool:
        """Whether ranks that still run have had their time."""
        failed = any(code for code, _ in self.ended.values()) or any(self.place.glob("rank-*.json"))
        now = time.monotonic()
        if failed and self._deadline is None:
            self._deadline = now + GRACE
        if self.hurried:
            self._deadline = min(self._deadline or now + HURRY, now + HURRY)
        return self._deadline is not None and now > self._deadline

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Takes signals for the ranks, which have sessions of their own and get none from a terminal."""
        before = handle_signals(self._take)
        try:
            yield
        finally:
            restore_signals(before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            silence_if_dead()
        if not self._started:
            sys.exit(128 + number)
        again = bool(self.received)
        if again and number != signal.SIGINT:
            return
        self.hurried = again
        self.received = self.received or number
        self._to_forward.append(number)
