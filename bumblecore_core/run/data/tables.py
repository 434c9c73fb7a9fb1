"""Rows of tables: CSV and TSV with a header, and Parquet through pyarrow."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bumblecore_core.errors import DataError, Problem, one
from bumblecore_core.run.data.strict_json import Oddity, refuse_bad_text
from bumblecore_core.run.data.text_lines import (
    BadFile,
    BadRow,
    FileRow,
    ReadNotes,
    place,
    problem_in,
    text_lines,
    too_large,
)

FIELD_LIMIT = 2**31 - 1  # csv's own limit of 128 KiB is too small for documents
_DELIMITERS = {",": "comma", "\t": "tab"}
PARQUET_BATCH, PARQUET_BATCH_BYTES = 512, 4 << 20  # rows, and roughly their bytes in memory
PARQUET_BUFFER = 1 << 20  # read column chunks in pieces: a file may be one row group


def read_csv(path: Path, notes: ReadNotes, max_row_bytes: int, delimiter: str = ",") -> Iterator[FileRow | BadRow]:
    """Rows of a comma- or tab-separated file, quoted alike; the first line names the columns, every value is text. A
    malformed row that the CSV syntax cannot get past ends the file, and so does one of more than `max_row_bytes`."""
    csv.field_size_limit(FIELD_LIMIT)
    read = used = 0  # bytes read so far, and up to the row that is being read

    def lines() -> Iterator[str]:
        nonlocal read
        for _, text, read in text_lines(path, max_row_bytes, notes):
            if text is None or read - used > max_row_bytes:
                raise BadFile(line, too_large(path, line, max_row_bytes))
            yield text

    reader = csv.reader(lines(), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    line = 1
    try:
        for values in reader:
            here, line, size, used = line, reader.line_num + 1, read - used, read
            if not values:
                notes.blank_lines += 1
            elif header is None:
                header = _header(path, here, values)
            elif len(values) != len(header):
                problem = f"the row has {len(values)} fields where the header has {len(header)}"
                fix = f"Quote fields that hold a {_DELIMITERS[delimiter]} or a line end."
                yield BadRow(
                    line=here, problem=Problem(code="BC001", place=place(path, here), problem=problem, fix=fix)
                )
            else:
                yield FileRow(line=here, row=dict(zip(header, values, strict=True)), size=size)
    except csv.Error as error:
        torn = "unexpected end of data" in str(error)
        problem = "the file ends inside a quoted field" if torn else f"malformed CSV: {error}"
        fix = "Close the quote, or write the file again if its writing was interrupted." if torn else "Correct the row."
        code = "BC010" if torn else "BC001"
        raise BadFile(line, Problem(code=code, place=place(path, line), problem=problem, fix=fix)) from None


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        problem = Problem(
            code="BC005",
            place=place(path, line),
            field=repeated,
            problem="the header names this column twice",
            fix="Rename or remove one of them.",
        )
        raise BadFile(line, problem)
    return names


def read_parquet(path: Path, notes: ReadNotes, max_row_bytes: int) -> Iterator[FileRow | BadRow]:
    """Rows of a Parquet file by number, streamed in batches. Nulls stay None."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise one(
            DataError,
            "BC061",
            "reading Parquet needs pyarrow, which is not installed",
            'pip install "bumblecore[parquet]"',
            place=str(path),
        ) from error
    try:
        with pq.ParquetFile(path, buffer_size=PARQUET_BUFFER) as file:
            yield from _parquet_rows(path, file, notes, max_row_bytes)
    except pa.ArrowException as error:
        problem = f"the content is not a readable Parquet file ({type(error).__name__})"
        fix = "Write it again; a Parquet file cut short has lost its footer."
        raise BadFile(0, Problem(code="BC061", place=str(path), problem=problem, fix=fix)) from None


def _parquet_rows(path: Path, file: Any, notes: ReadNotes, max_row_bytes: int) -> Iterator[FileRow | BadRow]:
    size, total, line = path.stat().st_size, max(1, file.metadata.num_rows), 0
    for batch in file.iter_batches(batch_size=_batch_size(file.metadata)):
        notes.bytes_read = size * -line // total
        whole = batch.nbytes <= max_row_bytes
        parts = [batch] if whole else (batch.slice(index, 1) for index in range(batch.num_rows))
        for part in parts:
            if not whole and part.nbytes > max_row_bytes:
                line -= 1
                yield BadRow(line=line, problem=too_large(path, line, max_row_bytes))
                continue
            for row in part.to_pylist():
                line -= 1
                try:
                    refuse_bad_text(row)
                except Oddity as odd:
                    yield BadRow(line=line, problem=problem_in(path, line, odd))
                else:
                    yield FileRow(line=line, row=row, size=part.nbytes // part.num_rows)


def _batch_size(metadata: Any) -> int:
    """Rows of a batch, fewer where a row group's are large on average."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    average = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(PARQUET_BATCH, PARQUET_BATCH_BYTES // max(1, average)))
