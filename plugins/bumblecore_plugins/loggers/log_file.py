"""`logs/train.log`: what the console says, with times, and more: every figure of every event, warnings of libraries."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

from bumblecore_core import RunInfo, RunResult, StepEvent
from bumblecore_core.errors import printable
from bumblecore_core.toolkit.summary import summary_lines
from bumblecore_core.toolkit.terminal import LAYOUT

LOGGERS = ("", "bumblecore", "transformers")
"""Whose records are taken: warnings of every library through the root logger, and those that do not pass theirs on."""


class LogFile:
    """Appends to `output_dir/logs/train.log`, each line with its time; what a library says is still shown as before."""

    def start(self, *, info: RunInfo) -> None:
        path = info.output_dir / "logs" / "train.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._failure: OSError | None = None
        self._listener: _Listener | None = None
        self._handler = _File(path, encoding="utf-8")
        self._handler.setFormatter(_EscapingFormatter("%(asctime)s %(message)s"))
        for line in summary_lines(info):
            self._write(line)
        self._listen()

    def step(self, *, event: StepEvent) -> None:
        figures = " ".join(f"{name}={value:.6g}" for name, value in event.metrics.items())
        self._write(f"{event.split} step={event.step} epoch={event.epoch:.4f} {figures}")

    def saved(self, *, directory) -> None:
        self._write(f"saved {directory}")

    def finish(self, *, result: RunResult) -> None:
        self._write(f"{result.status} after {result.steps} steps and {result.seconds:.1f} s")
        for line in result.problem.splitlines():
            self._write(f"problem: {line}")
        for name, value in result.summary.items():
            self._write(f"  {name}  {value:.6g}")
        if result.final_dir is not None:
            self._write(f"the model is in {result.final_dir}")
        self._stop_listening()
        self._handler.close()

    def _listen(self) -> None:
        """Takes other loggers' records and Python's warnings too. Python's last resort, which shows warnings that
        nobody handles on stderr, falls silent once there is a handler: it is called from there."""
        self._listener = _Listener(self._handle, show=not logging.getLogger().handlers)
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self._listener)
        self._show_warning = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None) -> None:
            self._note(f"{filename}:{lineno}: {category.__name__}: {message}")
            self._show_warning(message, category, filename, lineno, file, line)

        warnings.showwarning = show

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        warnings.showwarning = self._show_warning
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self._listener)

    def _write(self, line: str) -> None:
        """Raises `OSError`, and takes no records any more then."""
        self._note(line)
        if self._failure is not None:
            self._stop_listening()
            raise self._failure

    def _note(self, line: str) -> None:
        self._handle(logging.LogRecord("bumble", logging.INFO, "", 0, line, None, None))

    def _handle(self, record: logging.LogRecord) -> None:
        """A failure to write is raised at the next event, not in the library that has something to say."""
        if self._failure is None:
            try:
                self._handler.handle(record)
            except OSError as error:
                self._failure = error


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what `logging` would print, with a traceback, for every record


class _EscapingFormatter(logging.Formatter):
    """What plugins, libraries and files' names put into a message must not drive the terminal that shows the log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep=LAYOUT)


class _Listener(logging.Handler):
    """Hands records on to `write`, each once."""

    def __init__(self, write: Callable[[logging.LogRecord], None], *, show: bool) -> None:
        super().__init__()
        self._write, self._show, self._last = write, show, None

    def emit(self, record: logging.LogRecord) -> None:
        if record is self._last:  # it came from a logger that passes its records on to the root
            return
        self._last = record
        self._write(record)
        if self._show and not record.name.startswith("transformers") and record.levelno >= logging.WARNING:
            logging.lastResort.handle(record)
