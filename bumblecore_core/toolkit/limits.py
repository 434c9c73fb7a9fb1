"""Limits on CPU time and memory for code that others wrote and that runs in this process: chat templates, and regular
expressions of a user or of an adapter.

`piece` marks a piece of work and sets the limits. Inside `limited`, which sets them once around many pieces, a piece
costs a counter and no system call.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

TICK_SECONDS = 5.0  # a piece may take one to two ticks
MEMORY_BYTES = 2 << 30


class Exceeded(Exception):
    """A piece took more than it may; the message says of what."""


class _TimeUp(BaseException):
    """Raised by the timer. Not an `Exception`: those are caught by template engines."""


class _Watch:
    """Which piece is running, as seen at the last tick."""

    def __init__(self) -> None:
        self.armed = self.running = False
        self.number = self.seen = 0
        self.since = 0.0

    def tick(self, number: int, frame: Any) -> None:
        """Ends the piece that was running at the tick before, unless other threads took the time."""
        if not self.running:
            return
        if self.number != self.seen:
            self.seen, self.since = self.number, time.thread_time()
        elif time.thread_time() - self.since > 0.9 * TICK_SECONDS:
            raise _TimeUp


_watch = _Watch()


@contextmanager
def limited() -> Iterator[None]:
    """Sets the limits for the pieces inside, in the main thread only, where signals arrive.

    The timer counts CPU time, so a busy machine ends nothing. The memory limit holds for the whole process: nothing
    but the pieces may allocate much meanwhile.
    """
    if _watch.armed or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _watch.tick)
    address_space = resource.getrlimit(resource.RLIMIT_AS)
    _watch.armed = True
    try:
        if (used := _address_space()) is not None:
            soft = min(limit for limit in (used + MEMORY_BYTES, *address_space) if limit >= 0)
            resource.setrlimit(resource.RLIMIT_AS, (soft, address_space[1]))
        signal.setitimer(signal.ITIMER_VIRTUAL, TICK_SECONDS, TICK_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, address_space)
        _watch.armed = False


class piece:
    """A piece of work. Raises `Exceeded`."""

    __slots__ = ("_own",)

    def __enter__(self) -> None:
        self._own = None if _watch.armed else limited()
        if self._own is not None:
            self._own.__enter__()
        _watch.number += 1
        _watch.running = _watch.armed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _watch.running = False
        if self._own is not None:
            self._own.__exit__(None, None, None)
        if error is None:
            return
        if isinstance(error, _TimeUp):
            raise Exceeded(f"more than {TICK_SECONDS:g} seconds of CPU time") from None
        if isinstance(error, MemoryError):
            raise Exceeded(f"more than {MEMORY_BYTES >> 20:,} MiB of memory") from None


def _address_space() -> int | None:
    """Bytes of this process's address space; None where the system does not say (only Linux does)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
