"""Rows of a data file with the place of each: JSON lines, JSON, text, CSV, TSV and Parquet, compressed or not.

Every form is streamed, and no row of more than `max_row_bytes` is kept in memory. A bad row is yielded, not raised, so
that a reader can go on and collect more of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from bumblecore_core.errors import DataError, Problem, one
from bumblecore_core.run.data import compressed
from bumblecore_core.run.data.compressed import NAMES, DamagedArchive, compression_of, form_of, open_data
from bumblecore_core.run.data.json_documents import read_json_document
from bumblecore_core.run.data.strict_json import Oddity, StrictDecoder, skip_space
from bumblecore_core.run.data.tables import read_csv, read_parquet
from bumblecore_core.run.data.text_lines import (
    BOM,
    BadFile,
    BadRow,
    FileRow,
    ReadNotes,
    decode,
    malformed,
    place,
    problem_in,
    raw_lines,
    refuse_nul,
    require_object,
    text_lines,
    text_of,
    too_large,
    torn,
)

TxtSplit = Literal["line", "paragraph", "file"]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LARGEST_ROW = 16 << 20  # bytes; the default of data.max_row_bytes
MAGIC = {
    b"\xff\xfe": ("BC003", "UTF-16 text", "Save it as UTF-8."),
    b"\xfe\xff": ("BC003", "UTF-16 text", "Save it as UTF-8."),
    b"PK\x03\x04": ("BC004", "a zip archive", "Unpack it first."),
    b"PAR1": ("BC004", "a Parquet file", "Name it .parquet."),
    **{
        magic: ("BC004", f"{NAMES[suffix]} data", f"End its name with {suffix}, such as rows.jsonl{suffix}.")
        for suffix, magics in compressed.MAGIC.items()
        for magic in magics
    },
}


def read_rows(
    path: Path, *, txt_split: TxtSplit = "line", notes: ReadNotes | None = None, max_row_bytes: int = LARGEST_ROW
) -> Iterator[FileRow | BadRow]:
    """The rows of `path` in order, each with its place (see `text_lines.place`).

    The form is told from the content where a name misleads: an array in a .jsonl, JSON lines in a .json. Problems:
    BC001, BC003, BC004, BC005, BC008 (no row at all), BC010, BC011 (a row that is no object), BC020, BC091 (a row of
    more than `max_row_bytes`), BC095. Raises `DataError` BC061 where the file cannot be opened, BC071 where a package
    is missing that decompresses it.
    """
    notes = notes if notes is not None else ReadNotes()
    last: int | None = None  # place of the row before
    try:
        for item in _rows(path, txt_split, notes, max_row_bytes):
            last = item.line
            yield item
    except BadFile as bad:
        last = bad.line
        yield BadRow(line=bad.line, problem=bad.problem, ends_file=True)
    except DamagedArchive as damaged:
        yield BadRow(line=0, problem=_damaged(path, last or 0, damaged), ends_file=True)
        return
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise one(
            DataError,
            "BC061",
            f"the file cannot be read ({reason})",
            "Check that it exists, and its permissions",
            place=str(path),
        ) from error
    if last is None:
        yield BadRow(line=0, problem=_empty(path), ends_file=True)


def _rows(path: Path, txt_split: TxtSplit, notes: ReadNotes, max_row_bytes: int) -> Iterator[FileRow | BadRow]:
    form = form_of(path)
    if form == ".parquet":
        yield from read_parquet(path, notes, max_row_bytes)
        return
    _refuse_other_content(path)
    if form in DELIMITERS:
        yield from read_csv(path, notes, max_row_bytes, DELIMITERS[form])
    elif form == ".txt":
        yield from _text(path, txt_split, notes, max_row_bytes)
    elif _is_lines(path, max_row_bytes):
        yield from _json_lines(path, notes, max_row_bytes)
    else:
        yield from read_json_document(path, notes, max_row_bytes)


def _refuse_other_content(path: Path) -> None:
    """Raises `BadFile` for content that is not what the name says, compressed or inside."""
    suffix = compression_of(path)
    if suffix:
        with path.open("rb") as raw:
            head = raw.read(compressed.LONGEST_MAGIC)
        if head and not head.startswith(compressed.MAGIC[suffix]):
            problem = f"the content is not {NAMES[suffix]} data (byte 0)"
            fix = f"Compress it, or name the file without {path.suffix}."
            raise BadFile(0, Problem(code="BC004", place=str(path), problem=problem, fix=fix))
    with open_data(path) as file:
        head = file.read(compressed.LONGEST_MAGIC)
    for magic, (code, what, fix) in MAGIC.items():
        if head.startswith(magic):
            raise BadFile(0, Problem(code=code, place=str(path), problem=f"the content is {what} (byte 0)", fix=fix))


def _is_lines(path: Path, max_row_bytes: int) -> bool:
    """Whether the content is one JSON value a line: not so for an array, or an object laid out over several lines."""
    with open_data(path) as file:
        first = next(
            (line for line in iter(lambda: file.readline(max_row_bytes), b"") if line.removeprefix(BOM).strip()), b""
        )
    first = first.removeprefix(BOM).strip()
    if first.startswith(b"["):
        return False
    if form_of(path) != ".json":
        return first != b"{"
    try:
        return isinstance(json.loads(first), dict) if first else True
    except (ValueError, RecursionError):  # ValueError: also for bytes that are not UTF-8
        return False


def _json_lines(path: Path, notes: ReadNotes, max_row_bytes: int) -> Iterator[FileRow | BadRow]:
    decoder = StrictDecoder()
    for line, raw, start, end in raw_lines(path, max_row_bytes, notes):
        if raw is None:
            yield BadRow(line=line, problem=too_large(path, line, max_row_bytes))
            continue
        if not raw.strip():
            notes.blank_lines += 1
            continue
        try:
            row = _row_of_line(path, line, raw, start, decoder)
            yield FileRow(line=line, row=row, size=end - start)
        except BadFile as bad:
            yield BadRow(line=line, problem=bad.problem)


def _row_of_line(path: Path, line: int, raw: bytes, start: int, decoder: StrictDecoder) -> dict[str, Any]:
    unended = not raw.endswith(b"\n")
    refuse_nul(path, line, raw, start)
    text = decode(path, line, raw, start, torn=unended)
    try:
        value, end = decoder.decode(text, 0)
        end = skip_space(text, end)
        if end < len(text):
            raise json.JSONDecodeError("Text after the row's end", text, end)
    except Oddity as odd:
        raise BadFile(line, problem_in(path, line, odd)) from None
    except ValueError as error:
        whole = text.rstrip()
        if unended and (not whole.endswith("}") or getattr(error, "pos", 0) >= len(whole)):
            raise BadFile(line, torn(path, line)) from None
        raise BadFile(line, _malformed(path, line, error)) from None
    return require_object(path, line, value)


def _text(path: Path, txt_split: TxtSplit, notes: ReadNotes, max_row_bytes: int) -> Iterator[FileRow | BadRow]:
    """Rows `{"text": …}`: lines, blocks between blank lines, or the whole file; CR LF becomes LF."""
    if txt_split == "line":
        yield from _text_rows(path, notes, max_row_bytes)
        return
    block: list[str] = []
    first, size, before = 0, 0, 0  # `first`: the line on which the block starts, 0 between blocks

    def row() -> FileRow | BadRow:
        if size > max_row_bytes:
            return BadRow(line=first, problem=too_large(path, first, max_row_bytes))
        whole = "".join(block)
        text = whole if txt_split == "file" else whole.rstrip("\n")
        return FileRow(line=first, row={"text": text}, size=size)

    for line, text, read in text_lines(path, max_row_bytes, notes):
        size, before = size + read - before, read
        content = "" if text is None else text.rstrip("\r\n")
        if text is None or content.strip() or txt_split == "file":
            first = first or line
            if size <= max_row_bytes:
                block.append(content if text == content else content + "\n")
            elif txt_split == "file":
                break
            continue
        if first:
            yield row()
        block, first, size = [], 0, 0
    if first and (size > max_row_bytes or "".join(block).strip()):
        yield row()


def _text_rows(path: Path, notes: ReadNotes, max_row_bytes: int) -> Iterator[FileRow | BadRow]:
    """A row for each line that is not blank."""
    for line, raw, start, end in raw_lines(path, max_row_bytes, notes):
        try:
            if raw is None:
                raise BadFile(line, too_large(path, line, max_row_bytes))
            text = text_of(path, line, raw, start)
        except BadFile as bad:
            yield BadRow(line=line, problem=bad.problem)
            continue
        if text.strip():
            yield FileRow(line=line, row={"text": text.rstrip("\r\n")}, size=end - start)
        else:
            notes.blank_lines += 1


def _damaged(path: Path, last: int, damaged: DamagedArchive) -> Problem:
    where = "behind this row" if last else "before its first row"
    problem = f"{damaged.problem} {where}" + (f" ({damaged.message})" if damaged.message else "")
    fix = "Write or download it again, and check it (such as with gzip -t or zstd -t)."
    return Problem(code="BC095", place=place(path, last), problem=problem, fix=fix)


def _empty(path: Path) -> Problem:
    return Problem(code="BC008", place=str(path), problem="the file holds no row", fix="Remove it from the data paths.")


def _malformed(path: Path, line: int, error: ValueError) -> Problem:
    if isinstance(error, json.JSONDecodeError):
        return malformed(path, line, error.msg, at=(line, error.colno))
    return malformed(path, line, "A number has too many digits")
