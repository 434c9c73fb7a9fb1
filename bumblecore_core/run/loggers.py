"""Calls the run's loggers in the config's order; one that raises is reported once, by name, and dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bumblecore_core.errors import BumbleError
from bumblecore_core.protocols import Logger
from bumblecore_core.registry.collect import one_line
from bumblecore_core.run.blame import Plugin, place_of
from bumblecore_core.run.console import say
from bumblecore_core.toolkit.disk import FAILING, FULL, disk_code
from bumblecore_core.values import RunInfo, RunResult, StepEvent

DISK_CODES = ("BC042", "BC045")


class Loggers:
    """The loggers of one run on rank 0 (an empty list on every other rank)."""

    def __init__(self, named: Sequence[tuple[Plugin, Logger]]) -> None:
        self._alive: list[tuple[Plugin, Logger]] = list(named)

    def start(self, info: RunInfo) -> None:
        """Tells each logger what is about to run."""
        self._each(lambda logger: logger.start(info=info))

    def step(self, event: StepEvent) -> None:
        """Hands on one step's or one evaluation's metrics."""
        self._each(lambda logger: logger.step(event=event))

    def saved(self, directory: Path) -> None:
        """Tells that a model was saved."""
        self._each(lambda logger: logger.saved(directory=directory))

    def finish(self, result: RunResult) -> None:
        """Ends each logger."""
        self._each(lambda logger: logger.finish(result=result))

    def _each(self, call: Callable[[Logger], Any]) -> None:
        for entry in list(self._alive):
            plugin, logger = entry
            try:
                call(logger)
            except (Exception, SystemExit) as error:
                self._alive.remove(entry)
                say(f"warning: {_described(plugin, error)}; it is dropped, training continues.")


def _described(plugin: Plugin, error: BaseException) -> str:
    """A failure of the disk is not the logger's fault."""
    if isinstance(error, OSError) and error.errno in (*FULL, *FAILING):
        place = f" ({error.filename})" if isinstance(error.filename, str) else ""
        return f"{disk_code(error)} logger '{plugin.name}' cannot write: {error.strerror}{place}"
    if isinstance(error, BumbleError) and all(problem.code in DISK_CODES for problem in error.problems):
        return f"{error.problems[0].code} logger '{plugin.name}': {error.problems[0].problem}"
    return f"BC060 logger '{plugin.name}' raised {one_line(error)} ({place_of(error)}, module {plugin.module})"
