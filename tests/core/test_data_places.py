"""Where a row is: `file:line` where rows start on lines of their own, `file row N` otherwise; tabs and old Macs."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import good, problems, write
from data_stages import prepare, refused, summary

ROWS = [{"text": "a"}, {"text": "b"}, {"text": "c"}]


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.json", json.dumps(ROWS), [-1, -2, -3]),
        ("a.json", "\n" + json.dumps(ROWS) + "\n", [-1, -2, -3]),
        ("a.json", json.dumps(ROWS, indent=1), [2, 5, 8]),
        ("a.json", '[{"text": "a"},\n{"text": "b"},\n{"text": "c"}]', [1, 2, 3]),
        ("a.json", '[\n{"text": "a"}, {"text": "b"}, {"text": "c"}\n]', [2, -2, -3]),
        ("a.json", "".join(map(json.dumps, ROWS)), [-1, -2, -3]),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)), [1, 2, 3]),
    ],
)
def test_rows_of_one_line_are_numbered(tmp_path, name, text, places):
    assert good(write(tmp_path, name, text)) == list(zip(places, ROWS, strict=True))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[{"a": 1}, [], {"a": 2}]', "BC011"),
        ('[{"a": 1}, {"a": NaN}, {"a": 2}]', "BC005"),
        ('[{"a": 1}, {"a" 2}]', "BC001"),
        ('[{"a": 1}, {"a": 2', "BC010"),
        ('[{"a": 1}, {"a": ' + "1" * 5000 + "}]", "BC001"),
    ],
)
def test_problems_of_a_document_of_one_line_name_the_row(tmp_path, text, code):
    path = write(tmp_path, "a.json", text)
    assert problems(path) == [(-2, code, f"{path} row 2")]


def test_stages_and_stores_give_the_same_places(data, tmp_path):
    write(tmp_path, "a.json", json.dumps([{"text": "one"}, {"text": "split a b"}]))
    pq.write_table(pa.Table.from_pylist(ROWS), "b.parquet")
    store = prepare("a.json", "b.parquet", data(ROWS, "c.jsonl"))
    places = [store.locate(index) for index in range(len(store))]
    assert places[:3] == ["a.json row 1", "a.json row 2", "a.json row 2"]
    assert places[3:] == [f"b.parquet row {n}" for n in (1, 2, 3)] + [f"c.jsonl:{n}" for n in (1, 2, 3)]
    write(tmp_path, "a.json", json.dumps([{"text": "one"}, {"text": "bad"}, {"other": 1}]))
    assert summary(refused("a.json")) == [("BC014", "a.json row 2"), ("BC007", "a.json row 3")]


def test_tsv_is_quoted_like_csv(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tnote\na, b\t\n"c\td"\t"e\nf"\n"g"\n')
    assert good(write(tmp_path, "b.tsv", path.read_text().removesuffix('"g"\n'))) == [
        (2, {"text": "a, b", "note": ""}),
        (3, {"text": "c\td", "note": "e\nf"}),
    ]
    assert problems(path) == [(5, "BC001", f"{path}:5")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "First line.\rSecond line.\r"),
        ("a.txt", "\ufeffFirst line.\rSecond line."),
        ("a.csv", 'text\rFirst line.\r"Second line."\r'),
        ("a.jsonl", '{"text": "First line."}\r{"text": "Second line."}\r'),
        ("a.json", '[{"text": "First line."},\r{"text": "Second line."}]\r'),
    ],
)
def test_carriage_returns_alone_end_lines(tmp_path, name, text):
    first = 2 if name == "a.csv" else 1
    assert good(write(tmp_path, name, text)) == [
        (first, {"text": "First line."}),
        (first + 1, {"text": "Second line."}),
    ]


def test_carriage_returns_among_line_feeds_are_text(tmp_path):
    path = write(tmp_path, "a.txt", "a\rb\r\nc\r\r\n")
    assert good(path) == [(1, {"text": "a\rb"}), (2, {"text": "c"})]
    long = "x" * (1 << 16)
    path = write(tmp_path, "b.txt", long[:-1] + "\r\n" + "y\rz\n")  # CR and LF on both sides of the first block's end
    assert good(path) == [(1, {"text": long[:-1]}), (2, {"text": "y\rz"})]


def test_paragraphs_of_an_old_mac(tmp_path):
    path = write(tmp_path, "a.txt", "one\rtwo\r\rthree\r")
    assert good(path, txt_split="paragraph") == [(1, {"text": "one\ntwo"}), (4, {"text": "three"})]


def test_bytes_that_are_not_text_spoil_their_own_line_of_a_txt(tmp_path):
    path = write(tmp_path, "a.txt", b"one\n\xff\ntwo\n\0\nthree\n")
    assert problems(path) == [(2, "BC003", f"{path}:2"), (4, "BC020", f"{path}:4")]


def test_an_empty_csv_cell_is_empty_text(tmp_path):
    path = write(tmp_path, "a.csv", 'instruction,output,history\nSay hi,Hello,\n"",Hello,""\n')
    assert [row for _, row in good(path)] == [
        {"instruction": "Say hi", "output": "Hello", "history": ""},
        {"instruction": "", "output": "Hello", "history": ""},
    ]
