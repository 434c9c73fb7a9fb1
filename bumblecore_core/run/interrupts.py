"""SIGINT, SIGTERM and SIGHUP: before training they end the process, in it they are heeded between micro-batches and
never inside a collective."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from bumblecore_core.run.console import silence_if_dead

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AS_A_SHELL_DOES = 128  # a process that a signal ended exits with this and the signal's number


class Stopped(Exception):
    """Raised where a run ends because of a signal, agreed on by all ranks. `number`: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupted(KeyboardInterrupt):
    """Raised by a signal where there is nothing to save: what was begun cleans up after itself, and the process ends.
    `number`: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def interrupted_by(error: BaseException | None) -> int:
    """The number of the signal behind a `KeyboardInterrupt`, or behind what was raised from one."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__
    return int(signal.SIGINT if error is None else error.number)


class EarlyInterrupts:
    """While it is entered, a signal raises `Interrupted`, and is remembered: where that exception is lost (Python
    ignores those of destructors and of callbacks that run during an import) `heed` raises it once more. A second
    SIGTERM or SIGHUP does not interrupt the cleanup, a second SIGINT does."""

    def __init__(self) -> None:
        self._received = 0
        self._before: Mapping[int, Any] = {}

    def __enter__(self) -> EarlyInterrupts:
        self._before = handle_signals(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        restore_signals(self._before)

    def heed(self) -> None:
        """Raises `Interrupted` where a signal was received."""
        if self._received:
            raise Interrupted(self._received)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            silence_if_dead()
        if self._received and number != signal.SIGINT:
            return
        self._received = self._received or number
        raise Interrupted(number)


class Interrupts:
    """Notes the first signal while it is entered (`received`: its number, else 0). A second SIGINT raises
    `KeyboardInterrupt` at once. Outside Python's main thread signals are left alone."""

    def __init__(self, *, speak: bool) -> None:
        self.received = 0
        self._speak = speak
        self._before: Mapping[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = handle_signals(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        restore_signals(self._before)

    def votes(self) -> list[float]:
        """What this rank adds to the sums that `received_of_all` reads."""
        return [float(self.received == number) for number in SIGNALS]

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            silence_if_dead()
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received and self._speak:
            # not print: the handler may run in the middle of another print
            name = signal.Signals(number).name
            with suppress(OSError):
                os.write(2, f"\n{name}: saving a checkpoint, then stopping (Ctrl-C again: stop at once)\n".encode())
        self.received = self.received or number


def received_of_all(votes: Sequence[float]) -> int:
    """The signal that a run ends with, from how many ranks noted each of `SIGNALS`; 0: none did."""
    noted = [number for number, count in zip(SIGNALS, votes, strict=True) if count]
    return int(max(noted, key=[signal.SIGINT, signal.SIGHUP, signal.SIGTERM].index, default=0))


def handle_signals(take: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Has `take` handle the signals, on the main thread; the handlers before. SIGHUP stays ignored under `nohup`."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    return {number: signal.signal(number, take) for number in SIGNALS if number not in kept}


def restore_signals(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set by Python
