"""Rows of the two tabular forms: CSV with a header, and Parquet through pyarrow."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bumblecore_core.errors import DataError, Problem, one
from bumblecore_core.run.data.strict_json import Oddity, refuse_bad_text
from bumblecore_core.run.data.text_lines import BadFile, BadRow, FileRow, ReadNotes, problem_in, text_lines

FIELD_LIMIT = 2**31 - 1  # csv's own limit of 128 KiB is too small for documents
PARQUET_BATCH = 512


def read_csv(path: Path, notes: ReadNotes) -> Iterator[FileRow | BadRow]:
    """Rows of a comma-separated file; the first line names the columns, every value is text. A malformed row that the
    CSV syntax cannot get past ends the file."""
    csv.field_size_limit(FIELD_LIMIT)
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for _, text, done in text_lines(path):
            read = done
            yield text

    reader = csv.reader(lines(), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for values in reader:
            here, line = line, reader.line_num + 1
            if not values:
                notes.blank_lines += 1
            elif header is None:
                header = _header(path, here, values)
            elif len(values) != len(header):
                problem = f"the row has {len(values)} fields where the header has {len(header)}"
                fix = "Quote fields that hold a comma or a line end."
                yield BadRow(line=here, problem=Problem(code="BC001", place=f"{path}:{here}", problem=problem, fix=fix))
            else:
                yield FileRow(line=here, row=dict(zip(header, values, strict=True)), read=read)
    except csv.Error as error:
        torn = "unexpected end of data" in str(error)
        problem = "the file ends inside a quoted field" if torn else f"malformed CSV: {error}"
        fix = "Close the quote, or write the file again if its writing was interrupted." if torn else "Correct the row."
        code = "BC010" if torn else "BC001"
        raise BadFile(line, Problem(code=code, place=f"{path}:{line}", problem=problem, fix=fix)) from None


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        problem = Problem(
            code="BC005",
            place=f"{path}:{line}",
            field=repeated,
            problem="the header names this column twice",
            fix="Rename or remove one of them.",
        )
        raise BadFile(line, problem)
    return names


def read_parquet(path: Path) -> Iterator[FileRow | BadRow]:
    """Rows of a Parquet file, streamed in batches; the line is the row's number. Nulls stay None."""
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
        with pq.ParquetFile(path) as file:
            yield from _parquet_rows(path, file)
    except pa.ArrowException as error:
        problem = f"the content is not a readable Parquet file ({type(error).__name__})"
        fix = "Write it again; a Parquet file cut short has lost its footer."
        raise BadFile(0, Problem(code="BC061", place=str(path), problem=problem, fix=fix)) from None


def _parquet_rows(path: Path, file: Any) -> Iterator[FileRow | BadRow]:
    size, total, line = path.stat().st_size, max(1, file.metadata.num_rows), 0
    for batch in file.iter_batches(batch_size=PARQUET_BATCH):
        for row in batch.to_pylist():
            line += 1
            try:
                refuse_bad_text(row)
            except Oddity as odd:
                yield BadRow(line=line, problem=problem_in(path, line, odd))
            else:
                yield FileRow(line=line, row=row, read=size * line // total)
