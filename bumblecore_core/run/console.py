"""What the core says beside the loggers: on the console, and to Python's logging, where the log file picks it up."""

from __future__ import annotations

import logging
import sys

from bumblecore_core.errors import printable

LOG = logging.getLogger("bumblecore")
LOG.setLevel(logging.INFO)


def say(line: str) -> None:
    """Writes a line to stderr and logs it, below the level from which Python itself would show it a second time."""
    print(printable(line), file=sys.stderr)
    note(line)


def note(line: str) -> None:
    """Logs a line that the console has said already."""
    LOG.info(printable(line))
