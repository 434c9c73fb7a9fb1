"""Compressed data files: the same rows as plain ones, in bounded memory; damage is an error with its place."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tracemalloc
from importlib import util

import pytest
from data_files import good, only_problem, problems, write
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.config.schema import DataFile
from bumblecore_core.errors import CODES, DataError
from bumblecore_core.run.data.files import resolve_files
from bumblecore_core.run.data.reading import read_rows
from bumblecore_core.run.data.text_lines import FileRow, ReadNotes


def zst(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.compress(data)
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


COMPRESS = {".gz": gzip.compress, ".bz2": lambda data: bz2.compress(data, 1), ".xz": lzma.compress, ".zst": zst}
every_compression = pytest.mark.parametrize("suffix", COMPRESS)
ROWS = 6000
LINES = b"".join(json.dumps({"text": f"row {number} {number**9}"}).encode() + b"\n" for number in range(ROWS))


def csv_text(texts: list[str], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["text"], *([text] for text in texts)])
    return out.getvalue()


WRITERS = {
    "a.jsonl": lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts),
    "a.json": lambda texts: json.dumps([{"text": text} for text in texts], indent=1),
    "one-line.json": lambda texts: json.dumps([{"text": text} for text in texts]),
    "a.txt": lambda texts: "".join(" ".join(text.split()) + "\n" for text in texts),
    "a.csv": lambda texts: csv_text(texts, ","),
    "a.tsv": lambda texts: csv_text(texts, "\t"),
}
TEXT = st.text(st.sampled_from('ab é😀,"\t\n\r{}[]'), max_size=8).map(lambda text: text + ".")


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=6), form=st.sampled_from(sorted(WRITERS)), frames=st.integers(1, 3))
def test_every_compression_gives_the_rows_of_the_plain_file(tmp_path_factory, texts, form, frames):
    directory = tmp_path_factory.mktemp("compressed")
    data = WRITERS[form](texts).encode()
    plain = good(write(directory, form, data))
    assert len(plain) == len(texts)
    size = -(-len(data) // frames)
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    for suffix, compress in COMPRESS.items():
        path = write(directory, form + suffix, b"".join(map(compress, parts)))
        assert good(path) == plain


@every_compression
def test_an_archive_that_is_cut_short_is_an_error_behind_the_last_row(tmp_path, suffix):
    data = COMPRESS[suffix](LINES)
    whole = good(write(tmp_path, "whole.jsonl" + suffix, data))
    assert len(whole) == ROWS
    damaged = bytearray(data)
    for at in range(len(data) // 2, len(data) // 2 + 64):
        damaged[at] ^= 0xA5
    path = write(tmp_path, "a.jsonl" + suffix, data[: len(data) // 2])
    *rows, bad = read_rows(path)
    assert 0 < len(rows) < ROWS
    assert [(row.line, row.row) for row in rows] == whole[: len(rows)]
    assert (bad.line, bad.ends_file, bad.problem.code) == (0, True, "BC095")
    assert bad.problem.place == f"{path}:{len(rows)}"
    assert "cut short behind this row" in bad.problem.problem


@every_compression
def test_flipped_bytes_in_an_archive_are_an_error(tmp_path, suffix):
    data = bytearray(COMPRESS[suffix](LINES))
    for at in range(len(data) // 2, len(data) // 2 + 64):
        data[at] ^= 0xA5
    *items, bad = read_rows(write(tmp_path, "a.jsonl" + suffix, bytes(data)))
    assert (bad.line, bad.ends_file, bad.problem.code) == (0, True, "BC095")
    assert f":{items[-1].line}" in bad.problem.place  # possibly of a row that the flipped bytes changed


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from(sorted(COMPRESS)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    kept=st.floats(0, 1),
    more=st.binary(max_size=8),
)
def test_any_damage_gives_rows_or_problems_with_a_code(tmp_path_factory, suffix, changes, kept, more):
    data = bytearray(COMPRESS[suffix](LINES[:3000]))
    for at, byte in changes:
        data[int(at * len(data))] = byte
    data = data[: int(kept * len(data))] + more
    path = write(tmp_path_factory.mktemp("damaged"), "a.jsonl" + suffix, bytes(data))
    items = list(read_rows(path))
    assert items
    for item in items:
        assert isinstance(item, FileRow) or item.problem.code in CODES


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="limits of another library")
def test_an_archive_that_needs_too_much_memory_is_refused_with_the_reason(tmp_path):
    import zstandard

    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = write(tmp_path, "a.jsonl.zst", compressor.compress(b'{"text": "a"}\n') + compressor.flush())
    assert "too much memory" in only_problem(path).problem


@every_compression
@pytest.mark.parametrize("end", [1, 12])
def test_an_archive_without_its_end_is_never_taken_for_a_whole_one(tmp_path, suffix, end):
    path = write(tmp_path, "a.txt" + suffix, COMPRESS[suffix](b"one line\n")[:-end])
    assert [code for _, code, _ in problems(path)] == ["BC095"]


@every_compression
def test_bc095_names_the_file_where_no_row_was_read(tmp_path, suffix):
    path = write(tmp_path, "a.jsonl" + suffix, COMPRESS[suffix](b'{"text": "a"}\n')[:12])
    problem = only_problem(path)
    assert (problem.code, problem.place) == ("BC095", str(path)), problem
    assert "before its first row" in problem.problem


@every_compression
def test_bc004_content_that_is_not_what_the_name_says(tmp_path, suffix):
    plain = write(tmp_path, "a.jsonl" + suffix, b'{"text": "a"}\n')
    assert problems(plain) == [(0, "BC004", str(plain))]
    named_plain = write(tmp_path, "a.jsonl", COMPRESS[suffix](b'{"text": "a"}\n'))
    problem = only_problem(named_plain)
    assert (problem.code, problem.place) == ("BC004", str(named_plain))
    assert suffix in problem.fix
    twice = write(tmp_path, "b.jsonl" + suffix, COMPRESS[suffix](COMPRESS[suffix](b'{"text": "a"}\n')))
    assert problems(twice) == [(0, "BC004", str(twice))]


@every_compression
def test_an_empty_archive_holds_no_row(tmp_path, suffix):
    for number, content in enumerate([b"", COMPRESS[suffix](b"")]):
        path = write(tmp_path, f"{number}.jsonl{suffix}", content)
        assert problems(path) == [(0, "BC008", str(path))]


@every_compression
def test_a_torn_array_is_told_from_a_malformed_one(tmp_path, suffix):
    long = ",\n" + json.dumps({"text": "x" * 3_000_000})  # more than one block behind the fault
    for name, text, code in [
        ("torn", '[{"a": 1},\n{"a"', "BC010"),
        ("malformed", '[{"a": 1},\n{"a" 2}]', "BC001"),
        ("malformed-and-long", '[{"a": 1},\n{"a" 2}' + long + "]", "BC001"),
        ("torn-and-long", '[{"a": 1},\n{"a" 2}' + long, "BC010"),
    ]:
        path = write(tmp_path, f"{name}.json{suffix}", COMPRESS[suffix](text.encode()))
        assert problems(path) == [(2, code, f"{path}:2")], name


@every_compression
def test_a_row_that_expands_beyond_the_limit_is_refused_in_bounded_memory(tmp_path, suffix):
    path = write(tmp_path, "a.jsonl" + suffix, COMPRESS[suffix](b'{"text": "' + b"A" * (20 << 20) + b'"}\n'))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        (bad,) = read_rows(path, max_row_bytes=4096)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (bad.line, bad.problem.code) == (1, "BC091")
    assert peak < 18 << 20


def test_progress_counts_compressed_bytes(tmp_path):
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(LINES))
    notes, seen = ReadNotes(), []
    for _ in read_rows(path, notes=notes):
        seen.append(notes.bytes_read)
    assert seen == sorted(seen)
    assert seen[0] < seen[-1] == path.stat().st_size


def test_zstandard_that_is_not_installed_is_named_with_the_command(tmp_path, monkeypatch):
    path = write(tmp_path, "a.jsonl.zst", zst(b'{"text": "a"}\n'))
    find = util.find_spec
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "zstandard" else find(name))
    for attempt in (
        lambda: list(read_rows(path)),
        lambda: resolve_files([DataFile(path=str(path))], [None]),
    ):
        with pytest.raises(DataError, match=r'BC071 .*a\.jsonl\.zst: .*pip install "bumblecore\[zstd\]"'):
            attempt()


@pytest.mark.parametrize(
    ("name", "shown"), [("a.gz", r"\.gz"), ("a.parquet.gz", r"\.parquet\.gz"), ("a.xlsx.bz2", r"\.xlsx\.bz2")]
)
def test_bc004_a_compressed_file_of_an_unknown_form(tmp_path, name, shown):
    path = write(tmp_path, name, gzip.compress(b"x"))
    with pytest.raises(DataError, match=rf"BC004 .*the suffix {shown}\. Use one of .*\.jsonl.*\.zst"):
        resolve_files([DataFile(path=str(path))], [None])
