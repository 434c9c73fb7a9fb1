"""Rows of a data file with the line that each starts on: JSON lines, JSON, text, CSV and Parquet.

Lines, CSV and Parquet are streamed. A JSON array is read as one text, and its elements are decoded one at a time.
A bad row is yielded, not raised, so that a reader can go on and collect more of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from bumblecore_core.errors import DataError, Problem, one
from bumblecore_core.run.data.strict_json import Oddity, StrictDecoder, skip_space
from bumblecore_core.run.data.tables import read_csv, read_parquet
from bumblecore_core.run.data.text_lines import (
    BOM,
    BadFile,
    BadRow,
    FileRow,
    ReadNotes,
    decode,
    problem_in,
    refuse_nul,
    text_lines,
)

TxtSplit = Literal["line", "paragraph", "file"]
MAGIC = {
    b"\xff\xfe": ("BC003", "UTF-16 text", "Save it as UTF-8."),
    b"\xfe\xff": ("BC003", "UTF-16 text", "Save it as UTF-8."),
    b"\x1f\x8b": ("BC004", "a gzip archive", "Unpack it first."),
    b"PK\x03\x04": ("BC004", "a zip archive", "Unpack it first."),
    b"PAR1": ("BC004", "a Parquet file", "Name it .parquet."),
}


def read_rows(
    path: Path, *, txt_split: TxtSplit = "line", notes: ReadNotes | None = None
) -> Iterator[FileRow | BadRow]:
    """The rows of `path` in order; lines count from 1 (for a JSON array: where the element starts; Parquet: the row).

    The form is told from the content where a name misleads: an array in a .jsonl, JSON lines in a .json. Problems:
    BC001, BC003, BC004, BC005, BC008 (no row at all), BC010, BC011 (a row that is no object), BC020. Raises
    `DataError` BC061 where the file cannot be opened.
    """
    notes = notes if notes is not None else ReadNotes()
    empty = True
    try:
        for item in _rows(path, txt_split, notes):
            empty = False
            yield item
    except BadFile as bad:
        empty = False
        yield BadRow(line=bad.line, problem=bad.problem)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise one(
            DataError,
            "BC061",
            f"the file cannot be read ({reason})",
            "Check that it exists, and its permissions",
            place=str(path),
        ) from error
    if empty:
        yield BadRow(line=0, problem=_empty(path))


def _rows(path: Path, txt_split: TxtSplit, notes: ReadNotes) -> Iterator[FileRow | BadRow]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from read_parquet(path)
        return
    _refuse_binary(path)
    if suffix == ".csv":
        yield from read_csv(path, notes)
    elif suffix == ".txt":
        yield from _text(path, txt_split, notes)
    elif _is_lines(path):
        yield from _json_lines(path, notes)
    else:
        yield from _json_document(path)


def _refuse_binary(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
    for magic, (code, what, fix) in MAGIC.items():
        if head.startswith(magic):
            raise BadFile(0, Problem(code=code, place=str(path), problem=f"the content is {what} (byte 0)", fix=fix))


def _is_lines(path: Path) -> bool:
    """Whether the content is one JSON value a line: not so for an array, or an object laid out over several lines."""
    with path.open("rb") as file:
        first = next(
            (line for line in iter(lambda: file.readline(1 << 26), b"") if line.removeprefix(BOM).strip()), b""
        )
    first = first.removeprefix(BOM).strip()
    if first.startswith(b"["):
        return False
    if path.suffix.lower() != ".json":
        return first != b"{"
    try:
        return isinstance(json.loads(first), dict) if first else True
    except ValueError:  # of which a decoding error is one
        return False


def _json_lines(path: Path, notes: ReadNotes) -> Iterator[FileRow | BadRow]:
    decoder = StrictDecoder()
    with path.open("rb") as file:
        offset = 0
        for line, raw in enumerate(file, 1):
            start, offset = offset, offset + len(raw)
            if line == 1 and raw.startswith(BOM):
                raw, start = raw[len(BOM) :], len(BOM)
            if not raw.strip():
                notes.blank_lines += 1
                continue
            try:
                yield FileRow(line=line, row=_row_of_line(path, line, raw, start, decoder), read=offset)
            except BadFile as bad:
                yield BadRow(line=line, problem=bad.problem)


def _row_of_line(path: Path, line: int, raw: bytes, start: int, decoder: StrictDecoder) -> dict[str, Any]:
    torn = not raw.endswith(b"\n")
    refuse_nul(path, line, raw, start)
    text = decode(path, line, raw, start, torn=torn)
    try:
        value, end = decoder.decode(text, 0)
        end = skip_space(text, end)
        if end < len(text):
            raise json.JSONDecodeError("Text after the row's end", text, end)
    except Oddity as odd:
        raise BadFile(line, problem_in(path, line, odd)) from None
    except ValueError as error:
        whole = text.rstrip()
        if torn and (not whole.endswith("}") or getattr(error, "pos", 0) >= len(whole)):
            raise BadFile(line, _torn(path, line)) from None
        raise BadFile(line, _malformed(path, line, error)) from None
    return _object(path, line, value)


def _json_document(path: Path) -> Iterator[FileRow | BadRow]:
    """A JSON array, or objects one after another that may span lines. The first malformed element ends the file."""
    raw = path.read_bytes()
    start = len(BOM) if raw.startswith(BOM) else 0
    refuse_nul(path, 1, raw, 0)
    text = decode(path, 1, raw[start:], start)
    size, decoder = len(raw), StrictDecoder()
    del raw
    at = skip_space(text, 0)
    line = 1 + text.count("\n", 0, at)
    array = text.startswith("[", at)
    at = at + 1 if array else at
    first = True
    while True:
        here = skip_space(text, at)
        line, at = line + text.count("\n", at, here), here
        try:
            if array and text.startswith("]", at):
                at = skip_space(text, at + 1)
                if at < len(text):
                    raise json.JSONDecodeError("Text after the array's end", text, at)
                return
            if not array and at == len(text):
                return
            if array and not first:
                if not text.startswith(",", at):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
                here = skip_space(text, at + 1)
                line, at = line + text.count("\n", at, here), here
            value, end = decoder.decode(text, at)
        except Oddity as odd:
            # The decoder does not say where the element ends, so it is decoded again, leniently.
            end = json.JSONDecoder().raw_decode(text, at)[1]
            yield BadRow(line=line, problem=problem_in(path, line, odd))
        except ValueError as error:
            bad_line = getattr(error, "lineno", line)
            whole = text.rstrip()
            torn = getattr(error, "pos", 0) >= len(whole) or not whole.endswith("]" if array else "}")
            problem = _torn(path, bad_line) if torn else _malformed(path, bad_line, error)
            raise BadFile(bad_line, problem) from None
        else:
            try:
                row = _object(path, line, value)
                yield FileRow(line=line, row=row, read=min(size, end * size // max(1, len(text))))
            except BadFile as bad:
                yield BadRow(line=line, problem=bad.problem)
        line, at, first = line + text.count("\n", at, end), end, False


def _text(path: Path, txt_split: TxtSplit, notes: ReadNotes) -> Iterator[FileRow | BadRow]:
    """Rows `{"text": …}`: lines, blocks between blank lines, or the whole file; CR LF becomes LF."""
    block: list[str] = []
    first, read = 1, 0
    for line, text, read in text_lines(path):
        content = text.rstrip("\r\n")
        if txt_split == "line":
            if content.strip():
                yield FileRow(line=line, row={"text": content}, read=read)
            else:
                notes.blank_lines += 1
        elif content.strip() or txt_split == "file":
            first = first if block else line
            block.append(content if text == content else content + "\n")
        elif block:
            yield FileRow(line=first, row={"text": "".join(block).rstrip("\n")}, read=read)
            block = []
    whole = "".join(block)
    if whole.strip():
        yield FileRow(line=first, row={"text": whole if txt_split == "file" else whole.rstrip("\n")}, read=read)


def _object(path: Path, line: int, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    problem = Problem(
        code="BC011",
        place=f"{path}:{line}",
        problem=f"the row is a JSON {_JSON_NAMES.get(type(value), 'value')}, not an object",
        fix='Write each row as an object with named fields, such as {"text": "…"}.',
    )
    raise BadFile(line, problem)


_JSON_NAMES: dict[type, str] = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}


def _empty(path: Path) -> Problem:
    return Problem(code="BC008", place=str(path), problem="the file holds no row", fix="Remove it from the data paths.")


def _malformed(path: Path, line: int, error: ValueError) -> Problem:
    column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    message = error.msg if isinstance(error, json.JSONDecodeError) else "A number has too many digits"
    return Problem(
        code="BC001",
        place=f"{path}:{line}",
        problem=f"malformed JSON at line {line}{column}: {message}",
        fix="Correct the line or leave the row out.",
    )


def _torn(path: Path, line: int) -> Problem:
    return Problem(
        code="BC010",
        place=f"{path}:{line}",
        problem="the file ends in the middle of a row: probably an interrupted write or download",
        fix="Write the file again, or remove its last row.",
    )
