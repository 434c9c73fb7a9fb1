"""Worker processes: they end with the process that started them, and leave signals to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from bumblecore_core.run.interrupts import SIGNALS


@contextmanager
def signals_held() -> Iterator[None]:
    """Processes that are started inside begin with `SIGNALS` blocked, so that none ends them before `follow_parent`.
    This process handles what arrives meanwhile at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent(worker: int = 0) -> None:
    """In a worker process: ends it as soon as its parent has ended, by whatever signal.

    A terminal, Slurm or systemd send a signal to every process of a run, which has to save first: SIGINT and SIGHUP
    are ignored here, and so is a SIGTERM that is not the parent's.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _quiet_about_the_parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in the threads too that are started from here on
        threading.Thread(target=_end_when_asked, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _quiet_about_the_parent(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The thread that hands tensors to the parent prints a traceback where the parent stops in the middle of that."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # on a pipe of which the parent has the other end
    os._exit(1)


def _end_when_asked() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
