"""Printing text that others wrote (paths, configs, plugins' names, models' replies) without what drives a terminal."""

from __future__ import annotations

import json
import logging
import traceback
from types import TracebackType
from typing import Any

import click

from bumblecore_core.errors import UNPRINTABLE, printable

LAYOUT = "\n\t"
"""Control characters that a text of several lines keeps."""


def echo(text: str = "", *, err: bool = False) -> None:
    """Prints `text`, of one or more lines, with unprintable characters escaped."""
    click.echo(printable(text, keep=LAYOUT), err=err)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON that a terminal can show: readable in any script, with unprintable characters escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def escape_logs() -> None:
    """Has every message of Python's `logging` in this process, libraries' included, come out escaped."""
    logging.setLogRecordFactory(_EscapedRecord)


class _EscapedRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return printable(super().getMessage(), keep=LAYOUT)


def show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As `sys.excepthook`: prints a traceback, whose last line may quote anything, escaped."""
    echo("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), err=True)
