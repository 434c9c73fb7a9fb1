"""Rows to samples: each file's format told or taken from the configuration, rows converted in chunks, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bumblecore_core.config.resolved import Selected
from bumblecore_core.errors import DataError, PluginError, Problem, RowError, one
from bumblecore_core.protocols import DataFormat
from bumblecore_core.records import DataFormatRecord
from bumblecore_core.run.blame import TRACEBACK, Plugin, blamed, breach, passes, place_of
from bumblecore_core.run.built import check_built
from bumblecore_core.run.data.bad_rows import RowProblem
from bumblecore_core.run.data.columns import mapping_fix
from bumblecore_core.run.data.detect import (
    choose_format,
    keys_of,
    kind_of,
    matching,
    sample_fault,
    takes_reads,
    wrong_kind,
)
from bumblecore_core.run.data.files import Source
from bumblecore_core.run.data.reading import LARGEST_ROW, TxtSplit, read_rows
from bumblecore_core.run.data.text_lines import BadRow, FileRow, ReadNotes, place, row_name
from bumblecore_core.values import FeedbackSample, Sample, SampleKind

CHUNK_ROWS = 512
CHUNK_BYTES = 4 << 20  # few but huge rows (whole files) must not add up to gigabytes in flight


@dataclass(kw_only=True)
class Chunk:
    """Consecutive rows of one file. `source`: index of the file; `lines[i]`: place of `samples[i]`; `rows`: rows read,
    the bad ones too; `warnings`: of the samples, counted; `labels`: of feedback samples, counted; `read`: bytes read so
    far, over all files; `format`: name of the file's format, empty while no row of it was usable."""

    source: int
    samples: list[Sample] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    rows: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)
    labels: Counter[bool] = field(default_factory=Counter)
    blank_lines: int = 0
    read: int = 0
    format: str = ""


def read_chunks(
    sources: Sequence[Source],
    *,
    records: Sequence[DataFormatRecord],
    reads: SampleKind,
    stage: str,
    txt_split: TxtSplit = "line",
    max_row_bytes: int = LARGEST_ROW,
    failed: str = "",
) -> Iterator[Chunk]:
    """The samples of all files in order, in chunks whose bounds depend on the files alone. `failed`: see
    `choose_format`.

    Bad rows become problems of their chunk. Raises `PluginError` BC060 where a format raises anything but `RowError`.
    """
    before = 0
    for index, source in enumerate(sources):
        converter = Converter(source, records=records, reads=reads, stage=stage, failed=failed)
        notes = ReadNotes()
        chunk, size = Chunk(source=index, read=before), 0
        for item in read_rows(source.path, txt_split=txt_split, notes=notes, max_row_bytes=max_row_bytes):
            if isinstance(item, BadRow):
                chunk.problems.append(RowProblem(item.line, item.problem, ends_file=item.ends_file))
                chunk.rows += item.line != 0
            else:
                converter.add(item, chunk)
                chunk.read = before + notes.bytes_read
                size += item.size
            if converter.hopeless:
                break
            if chunk.rows >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield _closed(chunk, notes, converter)
                chunk, size = Chunk(source=index, read=chunk.read), 0
        before += source.path.stat().st_size
        chunk.read = before
        yield _closed(chunk, notes, converter)


def _closed(chunk: Chunk, notes: ReadNotes, converter: Converter) -> Chunk:
    chunk.blank_lines, notes.blank_lines = notes.blank_lines, 0
    chunk.format = converter.name
    return chunk


class Converter:
    """Converts the rows of one file, whose first row settles the schema.

    `hopeless`: the file's format cannot be told or gives what the stage does not read: no need to read on.
    """

    def __init__(
        self,
        source: Source,
        *,
        records: Sequence[DataFormatRecord],
        reads: SampleKind,
        stage: str,
        failed: str = "",
    ) -> None:
        self.source, self.records, self.reads, self.stage, self.failed = source, records, reads, stage, failed
        self.name, self.hopeless = "", False
        self._chosen: Selected[DataFormatRecord] | None = source.format
        self._convert_row: Callable[..., Sample] | None = None
        self._first: FileRow | None = None
        self._other_schemas: dict[str, Problem] = {}

    def add(self, item: FileRow, chunk: Chunk) -> None:
        """Adds the row's sample or its problem to `chunk`."""
        chunk.rows += 1
        here = place(self.source.path, item.line)
        try:
            sample = self._convert(item, here)
            chunk.samples.append(sample)
            chunk.warnings.update(sample.warnings)
            if isinstance(sample, FeedbackSample):
                chunk.labels[sample.label] += 1
            chunk.lines.append(item.line)
        except RowError as error:
            other = self._mixed(item) if error.problem.code == "BC007" else None
            if other is None:
                chunk.problems.append(RowProblem(item.line, error.at(here), mapping=self._mapping(error, item)))
            else:
                self._add_mix(item, other, here, chunk)
        except DataError as error:
            self.hopeless = True
            chunk.problems.extend(RowProblem(item.line, problem, ends_file=True) for problem in error.problems)
        except _OtherKind as error:
            self._add_mix(item, error.schema, here, chunk)

    def _convert(self, item: FileRow, place: str) -> Sample:
        first = self._first is None
        if self._convert_row is None:
            self._first = item
            self._convert_row = self._open(item, place)
        try:
            sample = self._convert_row(row=item.row)
        except RowError:
            raise
        except (Exception, SystemExit) as error:  # its text may hold the row's
            if passes(error):
                raise
            problem = f"{self._plugin} raised {type(error).__name__} ({place_of(error)})"
            fix = f"Check that the row is of this format; if it is, report this to the format's author; {TRACEBACK}"
            raise one(PluginError, "BC060", problem, fix, place=place) from error
        if fault := sample_fault(sample):
            raise breach(self._plugin, fault, "A format returns a sample of bumblecore_core.values", place=place)
        kind = kind_of(sample)
        assert kind is not None
        if kind != self.reads:
            if first:
                raise wrong_kind(self.name, kind, reads=self.reads, stage=self.stage, place=place)
            raise _OtherKind(f"{self.name} ({kind})")
        return sample

    def _open(self, item: FileRow, place: str) -> Callable[..., Sample]:
        if self._chosen is None:
            self._chosen = choose_format(
                item.row, records=self.records, reads=self.reads, stage=self.stage, place=place, failed=self.failed
            )
        self.name = self._chosen.record.name
        plugin = self._plugin
        with blamed(plugin):
            built: DataFormat = self._chosen.record.build(options=self._chosen.options)
        check_built(plugin, built)
        convert: Callable[..., Sample] = built.convert
        return partial(convert, reads=self.reads) if takes_reads(convert) else convert

    @property
    def _plugin(self) -> Plugin:
        assert self._chosen is not None
        return Plugin.of(self._chosen.record)

    def _mixed(self, item: FileRow) -> str | None:
        """The other schema that a row without a needed field is of, if it is of one."""
        if self._first is None or item is self._first or _keys(item.row) == _keys(self._first.row):
            return None
        others = [
            f"{record.name} ({' or '.join(kinds)})"
            for record, kinds in matching(self.records, item.row)
            if record.name != self.name
        ]
        return " or ".join(others) or None

    def _add_mix(self, item: FileRow, other: str, place: str, chunk: Chunk) -> None:
        """The same problem for all rows of one other schema."""
        assert self._first is not None
        if other not in self._other_schemas:
            self._other_schemas[other] = self._mix(self._first, item, other)
        chunk.problems.append(RowProblem(item.line, replace(self._other_schemas[other], place=place)))

    def _mix(self, first: FileRow, item: FileRow, other: str) -> Problem:
        return Problem(
            code="BC006",
            problem=(
                f"the file mixes two schemas: {self.name} ({self.reads}) from {row_name(first.line)} on, with "
                f"the keys {keys_of(first.row)}; and {other} from {row_name(item.line)} on, with the "
                f"keys {keys_of(item.row)}"
            ),
            fix="Split it into one file for each schema.",
        )

    def _mapping(self, error: RowError, item: FileRow) -> str:
        """How to map a column to a field that no row may have; empty if the error is another."""
        if error.problem.code != "BC007" or self._chosen is None:
            return ""
        return mapping_fix(self._chosen, error.problem.field, item.row)


class _OtherKind(Exception):
    def __init__(self, schema: str) -> None:
        super().__init__(schema)
        self.schema = schema


def _keys(row: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(row)
