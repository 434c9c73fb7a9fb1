"""Heartbeats between ranks: a rank that is not heard from for the time limit ends the run on all of them.

A collective has a time limit of its own, but it cannot tell a rank that works from one that is gone, and a call into
gloo, NCCL or a store over a cut link may block with no limit at all. Heartbeats can: they let a rank wait for another
one that works (tokenizes, writes a checkpoint) as long as it lives, and end a process whatever its main thread is in.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch.distributed as dist

from bumblecore_core import BumbleError, RunError, one
from bumblecore_core.toolkit.rank_errors import end_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LONGEST_PERIOD = 5.0  # seconds between two heartbeats
SHORTEST_LIMIT = 10.0  # seconds: a process on a loaded machine may be late by some
STOPPING = 3.0  # seconds that a rank takes to leave
RAISING = 2.0  # seconds that a rank has to raise the error itself once another one is lost
CLEANING_UP = 20.0  # seconds that a rank has to end once it has raised the error
GONE_ON_SIGNAL = 15.0  # seconds of silence after which a signal ends this process, since nothing can be saved any more
FIX = "Look at that process, its machine and the network; the same command resumes from the newest checkpoint"


@dataclass(kw_only=True)
class Peer:
    """What is known of a rank that this one watches."""

    rank: int
    value: bytes = b""
    """Its last heartbeat: a counter, 1 once it has left, process id, machine, host name."""
    silence: float = 0.0
    """Seconds without a new heartbeat."""
    dead: bool = False
    """Its process, on this machine, has ended."""

    @property
    def left(self) -> bool:
        """Whether it has said that it ends."""
        return self.value.split(b" ")[1:2] == [b"1"]

    @property
    def words(self) -> str:
        """What is wrong with it."""
        parts = self.value.decode().split(" ", 4)
        who = f"rank {self.rank} on {parts[4]}" if len(parts) == 5 else f"rank {self.rank}"
        return f"{who} has ended" if self.dead or self.left else f"no heartbeat of {who} for {self.silence:.0f} s"


class Heartbeat:
    """Heartbeats through a store. Rank 0 watches all other ranks and tells them which is lost; each of them watches
    rank 0, so that a rank costs the same on any number of ranks.

    `limit`: seconds of silence after which a rank is lost. A rank that waits in Python then raises; a process whose
    main thread is blocked elsewhere gets a grace period, in which the limit of its collective can end it with an
    exception, and is then ended with BC067 by `end`. Silence is counted in short steps, so that a launch that was
    suspended as a whole continues.
    """

    def __init__(
        self,
        store: dist.Store,
        *,
        rank: int,
        world_size: int,
        limit: float,
        end: Callable[[BumbleError], object] = end_process,
    ) -> None:
        self._rank, self._world_size, self._end = rank, world_size, end
        self._peers = [Peer(rank=other) for other in (range(1, world_size) if rank == 0 else [0])]
        self._meeting_store, self._store = store, store.clone()  # a clone has its own connection and lock
        self._own = f"{os.getpid()} {_machine()} {socket.gethostname()}"
        self._meetings = 0
        self._leaving, self._leave_by, self._wake = False, 0.0, threading.Event()
        self._reported_lost, self._failing_since = "", 0.0
        self.limit = limit
        self._signals, self._wakeup = os.pipe()
        self._wakeup_before: int | None = None
        os.set_blocking(self._wakeup, False)
        if threading.current_thread() is threading.main_thread():
            # the C handler of a signal writes to it even while the main thread is blocked outside Python
            self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._threads = [
            threading.Thread(target=run, name=f"bumble-{run.__name__.strip('_')}", daemon=True)
            for run in (self._beat, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def limit(self) -> float:
        """Seconds of silence after which a rank is lost."""
        return self._limit

    @limit.setter
    def limit(self, seconds: float) -> None:
        self._limit = max(SHORTEST_LIMIT, seconds)

    @property
    def period(self) -> float:
        """Seconds between two heartbeats."""
        return min(LONGEST_PERIOD, self._limit / 10)

    def lost(self) -> str:
        """Which rank is lost and how that is known; empty while all live."""
        if self._reported_lost:
            return self._reported_lost
        return next((peer.words for peer in self._peers if peer.silence >= self.limit or peer.dead), "")

    def silent(self) -> str:
        """The same for a rank that has missed heartbeats, though fewer than the limit allows."""
        return self.lost() or next((one.words for one in self._peers if one.silence > 3 * self.period or one.left), "")

    def meet(self) -> None:
        """Waits until all ranks are here, for as long as they live. Raises `RunError` BC067 where one is lost or has
        ended."""
        self._meetings += 1
        key, pause = f"meeting-{self._meetings}", 0.0005
        arrived = self._meeting_store.add(key, 1)
        while arrived < self._world_size:
            gone = self.lost() or next((peer.words for peer in self._peers if peer.left), "")
            if gone:
                self._reported_lost = gone  # for the others, who watch rank 0 only
                self.fail()
                raise one(RunError, "BC067", gone, FIX)
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
            arrived = self._meeting_store.add(key, 0)

    def fail(self) -> None:
        """Has this process a while to end by itself, since the main thread has raised an error."""
        self._failing_since = self._failing_since or time.monotonic()

    def stop(self) -> bool:
        """Tells the others that this rank leaves, and ends the threads. Whether they have ended."""
        self._leaving, self._leave_by = True, time.monotonic() + STOPPING / 2
        self._wake.set()
        if self._wakeup_before is not None and threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._wakeup_before)
            self._wakeup_before = None
        with suppress(OSError):
            os.write(self._wakeup, b"\0")
        for thread in self._threads:
            thread.join(timeout=STOPPING / 6 if self._failing_since else STOPPING)
        return not any(thread.is_alive() for thread in self._threads)

    def _beat(self) -> None:
        """Publishes this rank's heartbeats and reads the others'. May block for ever where the store is unreachable."""
        count = 0
        while True:
            leaving, count = self._leaving, count + 1
            with suppress(RuntimeError):  # the store is gone: rank 0, or the launcher, has ended
                if self._rank == 0 and (lost := self.lost()):
                    self._store.set("lost", lost)
                self._store.set(f"beat-{self._rank}", f"{count} {int(leaving)} {self._own}")
                known = [peer for peer in self._peers if peer.value or self._store.check([f"beat-{peer.rank}"])]
                values = self._store.multi_get([f"beat-{peer.rank}" for peer in known]) if known else []
                for peer, value in zip(known, values, strict=True):
                    peer.value = bytes(value)
                if self._rank != 0 and self._store.check(["lost"]):
                    self._reported_lost = self._store.get("lost").decode()
            if leaving and self._may_leave():
                return
            self._wake.wait(0.05 if leaving else self.period)
            self._wake.clear()

    def _may_leave(self) -> bool:
        """Rank 0, which may hold the store, leaves after the others: torch prints warnings where the store goes away
        under a heartbeat."""
        others = all(peer.left or peer.dead for peer in self._peers)
        return self._rank != 0 or others or bool(self._failing_since) or time.monotonic() > self._leave_by

    def _watch(self) -> None:
        """Counts silence, and ends the process where nobody else can. Touches neither store nor network."""
        seen = {peer.rank: b"" for peer in self._peers}
        last, received, since_lost = time.monotonic(), 0, 0.0
        while not self._leaving:
            tick = min(0.5, self.period)
            if select.select([self._signals], [], [], tick)[0]:
                received = next((n for n in os.read(self._signals, 64) if n in SIGNALS), received)
            now = time.monotonic()
            passed, last = min(now - last, 2 * tick), now
            for peer in self._peers:
                fresh = peer.value != seen[peer.rank]
                peer.silence = 0.0 if fresh else peer.silence + passed
                peer.dead = not peer.left and _ended_here(peer.value)
                seen[peer.rank] = peer.value
            since_lost = since_lost + passed if self.lost() else 0.0
            if not self._leaving:
                self._judge(received, since_lost)

    def _judge(self, received: int, since_lost: float) -> None:
        failing = self._failing_since and time.monotonic() - self._failing_since < CLEANING_UP
        if since_lost > RAISING + self.limit / 20 and not failing:
            self._end(one(RunError, "BC067", self.lost(), FIX))
        gone = min(self.limit, max(GONE_ON_SIGNAL, 3 * self.period))
        silent = next((peer.words for peer in self._peers if peer.silence >= gone or peer.dead), "")
        if received and silent:
            problem = f"{signal.Signals(received).name}, and {silent}: no checkpoint can be saved any more"
            error = one(RunError, "BC067", problem, FIX)
            error.exit_code = 128 + received
            self._end(error)


def _machine() -> str:
    """What two processes have in common that see one another's process ids."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"pid-{os.getpid()}"


def _ended_here(value: bytes) -> bool:
    """Whether the process of this heartbeat ran on this machine and has ended."""
    parts: Sequence[str] = value.decode().split(" ", 4)
    if len(parts) < 5 or parts[3] != _machine():
        return False
    try:
        return psutil.Process(int(parts[2])).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
