"""What the core says beside the loggers: on the console, and to Python's logging, where the log file picks it up."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bumblecore_core.errors import printable

LOG = logging.getLogger("bumblecore")
LOG.setLevel(logging.INFO)
STANDARD = (1, 2)  # descriptors of standard output and standard error


def say(line: str) -> None:
    """Writes a line to stderr and logs it, below the level from which Python itself would show it a second time."""
    try:
        print(printable(line), file=sys.stderr)
    except OSError:  # a terminal that is gone or a full disk under a redirected stream must not end a run
        silence(2)
    note(line)


def note(line: str) -> None:
    """Logs a line that the console has said already."""
    LOG.info(printable(line))


def silence(descriptor: int) -> None:
    """Drops what is still to be written to a standard stream, also what is flushed at the end of the process."""
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


@contextmanager
def output_may_fail() -> Iterator[None]:
    """A failure to write to standard output (a closed terminal, a full disk) silences it and does not end a run."""
    try:
        yield
    except OSError:
        silence(1)


def silence_if_dead() -> None:
    """Silences standard streams on a terminal that was closed, where each write would fail."""
    for descriptor in STANDARD:
        with suppress(OSError):
            # a terminal that was closed is still a character device, but no terminal any more (as /dev/null)
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                silence(descriptor)
