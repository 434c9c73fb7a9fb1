"""Calls the run's loggers in the config's order; one that raises is reported once, by name, and dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bumblecore_core.protocols import Logger
from bumblecore_core.registry.collect import one_line
from bumblecore_core.run.blame import Plugin, place_of
from bumblecore_core.run.console import say
from bumblecore_core.values import RunInfo, RunResult, StepEvent


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
                say(
                    f"warning: BC060 logger '{plugin.name}' raised {one_line(error)} ({place_of(error)}, module "
                    f"{plugin.module}); it is dropped, training continues."
                )
