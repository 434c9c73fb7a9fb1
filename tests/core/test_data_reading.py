"""Each form of data file, read as it was written."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import good, write
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.errors import DataError
from bumblecore_core.run.data.reading import read_rows
from bumblecore_core.run.data.text_lines import ReadNotes


def test_json_lines_with_blank_lines_and_bom(tmp_path):
    path = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\n   \n{"text": "b"}')
    notes = ReadNotes()
    assert good(path, notes=notes) == [(1, {"text": "a"}), (4, {"text": "b"})]
    assert notes.blank_lines == 2


def test_json_array_gives_the_line_where_each_element_starts(tmp_path):
    text = '\n[\n  {"text":\n "a"}, {"text": "b"},\n\n  {"text": "c"}\n]\n'
    assert good(write(tmp_path, "a.json", "\ufeff" + text)) == [
        (3, {"text": "a"}),
        (4, {"text": "b"}),
        (6, {"text": "c"}),
    ]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"},\n {"text": "b"}]',
        '{"text": "a"}\n{"text": "b"}\n',
        '{\n"text": "a"\n}\n{\n"text": "b"\n}\n',
    ],
)
def test_the_form_is_told_from_the_content(tmp_path, name, text):
    assert [row for _, row in good(write(tmp_path, name, text))] == [{"text": "a"}, {"text": "b"}]


def test_txt_is_split_by_line_paragraph_or_file(tmp_path):
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \nthree\n")
    assert good(path) == [(1, {"text": "one"}), (2, {"text": "two"}), (5, {"text": "three"})]
    assert good(path, txt_split="paragraph") == [(1, {"text": "one\ntwo"}), (5, {"text": "three"})]
    assert good(path, txt_split="file") == [(1, {"text": "one\ntwo\n\n \nthree\n"})]


def test_csv_rows_may_span_lines(tmp_path):
    path = write(tmp_path, "a.csv", '\ufeffinstruction,output\n"a,b","c\n""d"""\n\ne,f\n')
    assert good(path) == [(2, {"instruction": "a,b", "output": 'c\n"d"'}), (5, {"instruction": "e", "output": "f"})]


def test_csv_takes_long_fields(tmp_path):
    long = "x" * 200_000
    assert good(write(tmp_path, "a.csv", f"text\n{long}\n")) == [(2, {"text": long})]


def test_parquet_rows_are_numbered(tmp_path):
    rows = [{"text": f"row {index}", "tags": [index, None]} for index in range(1200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert good(tmp_path / "a.parquet") == [(-number, row) for number, row in enumerate(rows, 1)]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def no_pyarrow(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pyarrow)
    with pytest.raises(DataError, match=r"BC061 .*a\.parquet: .*bumblecore\[parquet\]"):
        list(read_rows(tmp_path / "a.parquet"))


def test_json_lines_are_streamed(tmp_path, monkeypatch):
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\n' * 3)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("the whole file was read"))
    rows = read_rows(path)
    assert next(rows).line == 1
    assert next(rows).line == 2


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text("abc", min_size=1, max_size=3), VALUES, max_size=4), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_rows_written_by_json_are_read_back(tmp_path_factory, rows, ascii_only, indent):
    directory = tmp_path_factory.mktemp("rows")
    lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    array = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    for name, text in [("a.jsonl", lines), ("b.json", array)]:
        read = good(write(directory, name, text))
        assert [row for _, row in read] == rows
    lines_of_array = [line for line, _ in read]
    assert lines_of_array == naive_element_lines(rows, array, indent)


def naive_element_lines(rows: list[dict], array: str, indent: int | None) -> list[int]:
    """Where each element starts, by printing every prefix of the list; minus its number in a document of one line."""
    if indent is None:
        return [-number for number in range(1, len(rows) + 1)]
    starts = []
    line = 2
    for row in rows:
        starts.append(line)
        line += len(json.dumps(row, indent=indent).split("\n"))
    assert array.count("\n") + 1 == line
    return starts
