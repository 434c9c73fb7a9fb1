"""Each way in which a data file can be bad: code and place."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import good, only_problem, problems, write

from bumblecore_core.errors import DataError
from bumblecore_core.run.data.reading import read_rows
from bumblecore_core.run.data.text_lines import BadRow


def test_bc001_names_line_and_column(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": oops}\n{"text": "c"}\n')
    problem = only_problem(path)
    assert (problem.code, problem.place) == ("BC001", f"{path}:2")
    assert "line 2, column 10" in problem.problem
    assert "oops" not in str(problem)
    assert [item.line for item in read_rows(path)] == [1, 2, 3]  # reading goes on behind it


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('[\n {"text": "a"},\n {"text" "b"}\n]', 3, 10),
        ('[\n {"text": "a"}\n {"text": "b"}\n]', 3, 2),
        ('[\n {"text": "a"},\n]', 3, 1),
        ('[{"text": "a"}]\n[{"text": "b"}]', 2, 1),
        ('{\n "text" "a"\n}\n', 2, 9),
    ],
)
def test_bc001_in_an_array(tmp_path, text, line, column):
    path = write(tmp_path, "a.json", text)
    problem = only_problem(path)
    assert (problem.code, problem.place) == ("BC001", f"{path}:{line}")
    assert f"line {line}, column {column}" in problem.problem


def test_bc001_text_after_a_row_deep_nesting_and_endless_numbers(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a"} x\n' + '{"a": ' * 100_000 + "\n" + '{"a": ' + "1" * 5000 + "}\n")
    assert problems(path) == [(1, "BC001", f"{path}:1"), (2, "BC001", f"{path}:2"), (3, "BC001", f"{path}:3")]


def test_bc001_csv(tmp_path):
    path = write(tmp_path, "a.csv", 'a,b\n1,2\n3\n4,5,6\n"x"y,8\n')
    assert problems(path) == [(3, "BC001", f"{path}:3"), (4, "BC001", f"{path}:4"), (5, "BC001", f"{path}:5")]


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b'),
        ("a.json", b'[\n{"text": "b'),
        ("a.txt", b"a\nb"),
        ("a.csv", b"text\nb"),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_bc003_gives_the_byte_offset(tmp_path, name, before, bom):
    path = write(tmp_path, name, bom + before + b'\xe9"}\n')
    problem = only_problem(path)
    assert (problem.code, problem.place) == ("BC003", f"{path}:2")
    assert f"byte offset {len(bom + before)}" in problem.problem


def test_bc003_utf16(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\n'.encode("utf-16"))
    assert problems(path) == [(0, "BC003", str(path))]


def test_bc004_other_content_than_the_name_says(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"text": "a"}]), tmp_path / "a.jsonl")
    for path in (tmp_path / "a.jsonl", write(tmp_path, "b.json", b"\x1f\x8b\x08\x00")):
        assert problems(path) == [(0, "BC004", str(path))]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ('{"text": "a", "score": NaN}', "score"),
        ('{"a": [1, {"b": -Infinity}]}', "a[1].b"),
        ('{"text": "a", "text": "b"}', "text"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "b"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_bc005_names_the_key(tmp_path, name, row, field):
    text = f'{{"text": "x"}}\n{row}\n{{"text": "y"}}\n'
    path = write(tmp_path, name, text if name == "a.jsonl" else "[" + text.replace("\n", ",\n", 2) + "]")
    (bad,) = [item for item in read_rows(path) if isinstance(item, BadRow)]
    assert (bad.problem.code, bad.problem.place, bad.problem.field) == ("BC005", f"{path}:2", field)
    assert [item.line for item in read_rows(path)] == [1, 2, 3]


def test_bc005_csv_column_twice(tmp_path):
    path = write(tmp_path, "a.csv", "text,text\na,b\n")
    assert problems(path) == [(1, "BC005", f"{path}:1")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("a.jsonl", "\n \n"),
        ("a.json", "[]"),
        ("a.json", "\ufeff"),
        ("a.txt", "\n"),
        ("a.csv", "a,b\n"),
    ],
)
def test_bc008_no_row(tmp_path, name, content):
    path = write(tmp_path, name, content)
    assert problems(path) == [(0, "BC008", str(path))]


def test_bc008_empty_parquet(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert problems(tmp_path / "a.parquet") == [(0, "BC008", str(tmp_path / "a.parquet"))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b'),
        ("a.jsonl", '{"text": "a"}\n{"text": {"b": 1}'),
        ("a.jsonl", '{"text": "a"}\n{"text": tru'),
        ("a.jsonl", b'{"text": "a"}\n' + b'{"text": "\xc3'),
        ("a.json", '[{"text": "a"},\n{"text": "b'),
        ("a.json", '[{"text": "a"},\n{"text": "b"}'),
        ("a.json", '[{"text": "a"},\n{"text": "b"},'),
        ("a.csv", 'text\n"a'),
    ],
)
def test_bc010_a_torn_end(tmp_path, name, content):
    path = write(tmp_path, name, content)
    assert problems(path) == [(2, "BC010", f"{path}:2")]


def test_a_last_line_that_is_whole_or_wrong_in_its_middle_is_not_torn(tmp_path):
    assert good(write(tmp_path, "a.jsonl", '{"text": "a"}')) == [(1, {"text": "a"})]
    assert problems(write(tmp_path, "b.jsonl", '{"text": a}'))[0][1] == "BC001"


@pytest.mark.parametrize("cut", range(2, 37))
def test_bc010_wherever_an_array_is_cut(tmp_path, cut):
    whole = '[{"a": [1, {"b": "c"}]}, {"d": true}]'
    path = write(tmp_path, "a.json", whole[:cut])
    assert [code for _, code, _ in problems(path)] == ["BC010"]


@pytest.mark.parametrize("row", ["[1, 2]", '"text"', "3", "null", "true"])
def test_bc011_a_row_that_is_no_object(tmp_path, row):
    path = write(tmp_path, "a.jsonl", f'{{"text": "a"}}\n{row}\n')
    assert problems(path) == [(2, "BC011", f"{path}:2")]
    path = write(tmp_path, "a.json", f'[{{"text": "a"}},\n{row}]')
    assert problems(path) == [(2, "BC011", f"{path}:2")]


@pytest.mark.parametrize(
    ("row", "field", "offset"),
    [
        (r'{"text": "ab\ud800c"}', "text", 2),
        (r'{"a": [{"b": "\uDC00"}]}', "a[0].b", 0),
        (r'{"text": "\ud83d\ude00 \u0000"}', "text", 2),
    ],
)
def test_bc020_names_field_and_offset(tmp_path, row, field, offset):
    path = write(tmp_path, "a.jsonl", f'{{"text": "a"}}\n{row}\n')
    problem = only_problem(path)
    assert (problem.code, problem.place, problem.field) == ("BC020", f"{path}:2", field)
    assert f"offset {offset} " in problem.problem


def test_surrogate_pairs_and_escaped_backslashes_are_fine(tmp_path):
    path = write(tmp_path, "a.jsonl", r'{"text": "\ud83d\ude00 \\ud800 \\u0000"}' + "\n")
    assert good(path) == [(1, {"text": "😀 \\ud800 \\u0000"})]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv"])
def test_bc020_a_nul_byte(tmp_path, name):
    before = {"a.json": b'[{"text": "a"},\n{"text": "b'}.get(name, b"text\nb")
    path = write(tmp_path, name, before + b'\0"}]\n')
    assert f"byte offset {len(before)}" in next(
        item.problem.problem for item in read_rows(path) if isinstance(item, BadRow) and item.problem.code == "BC020"
    )
    assert (2, "BC020", f"{path}:2") in problems(path)


def test_bc020_in_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"text": "a"}, {"text": "b\0"}]), tmp_path / "a.parquet")
    assert problems(tmp_path / "a.parquet") == [(-2, "BC020", f"{tmp_path / 'a.parquet'} row 2")]


def test_bc061_broken_parquet_and_missing_file(tmp_path):
    path = write(tmp_path, "a.parquet", b"PAR1 but cut short")
    assert problems(path) == [(0, "BC061", str(path))]
    with pytest.raises(DataError, match=r"BC061 .*b\.jsonl"):
        list(read_rows(tmp_path / "b.jsonl"))
