"""Calls the run's loggers in the config's order; one that raises is reported once, by name, and dropped."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bumblecore_core.protocols import Logger
from bumblecore_core.run.console import say
from bumblecore_core.values import RunInfo, RunResult, StepEvent


class Loggers:
    """The loggers of one run on rank 0 (an empty list on every other rank)."""

    def __init__(self, named: Sequence[tuple[str, Logger]]) -> None:
        self._alive: list[tuple[str, Logger]] = list(named)

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
            try:
                call(entry[1])
            except Exception as error:
                self._alive.remove(entry)
                where = traceback.extract_tb(error.__traceback__)[-1]
                say(
                    f"warning: BC060 logger '{entry[0]}' raised {type(error).__name__}: {error} "
                    f"({where.filename}:{where.lineno}); it is dropped, training goes on."
                )
