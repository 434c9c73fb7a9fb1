"""SIGINT and SIGTERM, heeded between micro-batches and never inside a collective."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Raised where a run ends because of a signal, agreed on by all ranks. `number`: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class EarlyInterrupts:
    """While it is entered, a SIGINT raises `KeyboardInterrupt` as ever, and is remembered: where that exception is lost
    (Python ignores those of destructors and of callbacks that run during an import) `heed` raises it once more."""

    def __init__(self) -> None:
        self._received = False
        self._before: Any = None

    def __enter__(self) -> EarlyInterrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def heed(self) -> None:
        """Raises `KeyboardInterrupt` where one was received."""
        if self._received:
            raise KeyboardInterrupt

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        raise KeyboardInterrupt


class Interrupts:
    """Notes the first signal while it is entered (`received`: its number, else 0). A second SIGINT raises
    `KeyboardInterrupt` at once. Outside Python's main thread signals are left alone."""

    def __init__(self, *, speak: bool) -> None:
        self.received = 0
        self._speak = speak
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def votes(self) -> list[float]:
        """What this rank adds to the sums that `received_of_all` reads."""
        return [float(self.received == number) for number in SIGNALS]

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received and self._speak:
            # not print: the handler may run in the middle of another print
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving a checkpoint, then stopping (Ctrl-C again: stop at once)\n".encode())
        self.received = self.received or number


def received_of_all(sigints: float, sigterms: float) -> int:
    """The signal that a run ends with, from how many ranks noted each; 0: none did."""
    if sigterms:
        return int(signal.SIGTERM)
    return int(signal.SIGINT) if sigints else 0
