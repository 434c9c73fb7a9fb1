"""Bytes to text with places: UTF-8 with or without a BOM, and the values that readers yield."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bumblecore_core.errors import Problem
from bumblecore_core.run.data.strict_json import Oddity

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """A parsed row. `line`: where it starts, from 1; `read`: bytes of the file read so far (for progress alone)."""

    line: int
    row: dict[str, Any]
    read: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that cannot be used. `line` is 0 where the problem is the whole file's."""

    line: int
    problem: Problem


@dataclass(slots=True)
class ReadNotes:
    """What a reader passed over. `blank_lines`: lines or records without content (BC009)."""

    blank_lines: int = 0


class BadFile(Exception):
    """Reading cannot go on behind `line`."""

    def __init__(self, line: int, problem: Problem) -> None:
        super().__init__(problem.problem)
        self.line, self.problem = line, problem


def decode(path: Path, line: int, raw: bytes, offset: int, *, torn: bool = False) -> str:
    """`raw` (at byte `offset` of the file) as text. Raises `BadFile` BC003, or BC010 for a character cut in two at the
    end of a `torn` last line."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        if torn and error.reason == "unexpected end of data":
            raise BadFile(
                line,
                Problem(
                    code="BC010",
                    place=f"{path}:{line}",
                    problem="the file ends in the middle of a character: probably an interrupted write or download",
                    fix="Write the file again, or remove its last row.",
                ),
            ) from None
        raise BadFile(
            line,
            Problem(
                code="BC003",
                place=f"{path}:{line}",
                problem=f"not UTF-8 at byte offset {offset + error.start}",
                fix="Convert the file to UTF-8.",
            ),
        ) from None


def refuse_nul(path: Path, line: int, raw: bytes, offset: int) -> None:
    """Raises `BadFile` BC020 for a NUL byte in `raw`, which begins at byte `offset` of the file."""
    at = raw.find(b"\0")
    if at >= 0:
        line += raw.count(b"\n", 0, at)
        problem = f"a NUL at byte offset {offset + at}"
        fix = "Remove it: a tokenizer cannot read it (a run of them is left by an interrupted write)."
        raise BadFile(line, Problem(code="BC020", place=f"{path}:{line}", problem=problem, fix=fix))


def text_lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """(line from 1, its text with the line end, bytes read so far). Raises `BadFile` at the first byte that is bad."""
    with path.open("rb") as file:
        offset = 0
        for line, raw in enumerate(file, 1):
            start, offset = offset, offset + len(raw)
            if line == 1 and raw.startswith(BOM):
                raw, start = raw[len(BOM) :], len(BOM)
            refuse_nul(path, line, raw, start)
            text = decode(path, line, raw, start)
            yield line, text[:-2] + "\n" if text.endswith("\r\n") else text, offset


def problem_in(path: Path, line: int, odd: Oddity) -> Problem:
    """The problem of an oddity in the row that starts on `line`."""
    return Problem(code=odd.code, place=f"{path}:{line}", field=odd.field, problem=odd.problem, fix=odd.fix)
