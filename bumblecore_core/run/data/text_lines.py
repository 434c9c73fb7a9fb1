"""Bytes to text with places: UTF-8 with or without a BOM, the values that readers yield, and their common problems.

The place of a row is an integer: its line from 1, or minus its number where rows do not start on lines of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bumblecore_core.errors import Problem
from bumblecore_core.run.data.compressed import open_data
from bumblecore_core.run.data.strict_json import Oddity

BOM = b"\xef\xbb\xbf"
BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """A parsed row. `line`: where it starts, see `place`; `size`: bytes of the row when it is not compressed."""

    line: int
    row: dict[str, Any]
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that cannot be used. `line` is 0 if the problem is the whole file's; `ends_file`: nothing behind the row
    can be read."""

    line: int
    problem: Problem
    ends_file: bool = False


@dataclass(slots=True)
class ReadNotes:
    """What a reader passed over, and how far it is. `blank_lines`: lines or records without content (BC009);
    `bytes_read`: of the file as it lies on disk."""

    blank_lines: int = 0
    bytes_read: int = 0


class BadFile(Exception):
    """Reading cannot go on behind `line`."""

    def __init__(self, line: int, problem: Problem) -> None:
        super().__init__(problem.problem)
        self.line, self.problem = line, problem


def place(path: Path | str, line: int) -> str:
    """`file:line`, or `file row N` for a negative `line`; the file alone for 0."""
    if line < 0:
        return f"{path} {row_name(line)}"
    return f"{path}:{line}" if line else str(path)


def row_name(line: int) -> str:
    """`line N`, or `row N` for a negative `line`."""
    return f"row {-line}" if line < 0 else f"line {line}"


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
                    place=place(path, line),
                    problem="the file ends in the middle of a character: probably an interrupted write or download",
                    fix="Write the file again, or remove its last row.",
                ),
            ) from None
        raise BadFile(line, not_utf8(path, line, offset + error.start)) from None


def refuse_nul(path: Path, line: int, raw: bytes, offset: int) -> None:
    """Raises `BadFile` BC020 for a NUL byte in `raw`, which begins at byte `offset` of the file."""
    at = raw.find(b"\0")
    if at >= 0:
        line += raw.count(b"\n", 0, at)
        problem = f"a NUL at byte offset {offset + at}"
        fix = "Remove it: a tokenizer cannot read it (a run of them is left by an interrupted write)."
        raise BadFile(line, Problem(code="BC020", place=place(path, line), problem=problem, fix=fix))


def raw_lines(path: Path, most: int, notes: ReadNotes) -> Iterator[tuple[int, bytes | None, int, int]]:
    """(line from 1, its bytes with the line end and without a BOM, offset of the first, offset behind the last). A line
    of more than `most` bytes is passed over in blocks and given as None."""
    with open_data(path, notes) as file:
        line, end = 0, 0
        while raw := file.readline(most + 1):
            line, start, end = line + 1, end, end + len(raw)
            if len(raw) <= most or raw.endswith(b"\n"):
                bom = len(BOM) if line == 1 and raw.startswith(BOM) else 0
                yield line, raw[bom:], start + bom, end
                continue
            while not raw.endswith(b"\n") and (raw := file.readline(BLOCK)):
                end += len(raw)
            yield line, None, start, end


def text_lines(path: Path, most: int, notes: ReadNotes) -> Iterator[tuple[int, str | None, int]]:
    """(line from 1, its text with the line end or None for one of more than `most` bytes, bytes of text so far). Raises
    `BadFile` at the first byte that is bad."""
    for line, raw, start, end in raw_lines(path, most, notes):
        yield line, None if raw is None else text_of(path, line, raw, start), end


def text_of(path: Path, line: int, raw: bytes, start: int) -> str:
    """A raw line as text, CR LF as LF. Raises `BadFile` at the first byte that is bad."""
    refuse_nul(path, line, raw, start)
    text = decode(path, line, raw, start)
    return text[:-2] + "\n" if text.endswith("\r\n") else text


def problem_in(path: Path, line: int, odd: Oddity) -> Problem:
    """The problem of an oddity in the row that starts on `line`."""
    return Problem(code=odd.code, place=place(path, line), field=odd.field, problem=odd.problem, fix=odd.fix)


def require_object(path: Path, line: int, value: Any) -> dict[str, Any]:
    """`value` as a row. Raises `BadFile` BC011 for one that is no object."""
    if isinstance(value, dict):
        return value
    problem = f"the row is a JSON {_JSON_NAMES.get(type(value), 'value')}, not an object"
    fix = 'Write each row as an object with named fields, such as {"text": "…"}.'
    raise BadFile(line, Problem(code="BC011", place=place(path, line), problem=problem, fix=fix))


_JSON_NAMES: dict[type, str] = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}


def malformed(path: Path, line: int, message: str, *, at: tuple[int, int] | None = None) -> Problem:
    """BC001 in the row at `line`, with the JSON decoder's message; `at`: the line and column that it is about."""
    where = "" if at is None else f" at line {at[0]}, column {at[1]}"
    problem, fix = f"malformed JSON{where}: {message}", "Correct the line or leave the row out."
    return Problem(code="BC001", place=place(path, line), problem=problem, fix=fix)


def not_utf8(path: Path, line: int, offset: int) -> Problem:
    """BC003 with the byte's offset in the file."""
    problem, fix = f"not UTF-8 at byte offset {offset}", "Convert the file to UTF-8."
    return Problem(code="BC003", place=place(path, line), problem=problem, fix=fix)


def torn(path: Path, line: int) -> Problem:
    """BC010 for a row that the file's end cuts off."""
    problem = "the file ends in the middle of a row: probably an interrupted write or download"
    fix = "Write the file again, or remove its last row."
    return Problem(code="BC010", place=place(path, line), problem=problem, fix=fix)


def too_large(path: Path, line: int, max_row_bytes: int) -> Problem:
    """BC091 for the row that starts on `line`."""
    problem = f"the row has more than {max_row_bytes:,} bytes"
    fix = (
        "Split it, or raise data.max_row_bytes; tokenizing a row takes about 150 bytes of memory for each of its bytes."
    )
    return Problem(code="BC091", place=place(path, line), problem=problem, fix=fix)
