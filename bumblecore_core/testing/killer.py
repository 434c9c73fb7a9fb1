"""A logger for tests of resuming: kills the run's process with SIGKILL as soon as its first checkpoint is committed.

`bumble verify-resume` loads it with `-p bumblecore_core.testing.killer`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from bumblecore_core import LoggerRecord, NoOptions, RunInfo, RunResult, StepEvent, hookimpl

NAME = "kill_when_saved"


class KillWhenSaved:
    """Leaves no time for anything: no exception handler, no exit hook, no buffer gets to run."""

    def start(self, *, info: RunInfo) -> None:
        """Nothing to begin."""

    def step(self, *, event: StepEvent) -> None:
        """Nothing to log."""

    def saved(self, *, directory: Path) -> None:
        """Kills the process."""
        os.kill(os.getpid(), signal.SIGKILL)

    def finish(self, *, result: RunResult) -> None:
        """Nothing to end."""


@hookimpl
def bumble_loggers() -> list[LoggerRecord]:
    """The killer."""
    return [
        LoggerRecord(
            name=NAME,
            summary="Kills the run when its first checkpoint is committed.",
            build=lambda *, options: KillWhenSaved(),
            options=NoOptions,
        )
    ]
