"""A row that is too large is refused before it is kept in memory; JSON documents are read through a window."""

from __future__ import annotations

import csv
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import write
from data_stages import prepare, refused, summary
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.run.data import json_documents
from bumblecore_core.run.data.reading import read_rows
from bumblecore_core.run.data.text_lines import BadRow, ReadNotes

LIMIT = 4096
HUGE = "word " * 1_600_000  # 8 MB
FORMS = ["a.jsonl", "a.json", "a.csv", "line.txt", "paragraph.txt", "file.txt", "a.parquet"]


def rows_of(name: str, directory, large: str):
    """A file of this form whose third row is `large`, and the place of that row."""
    texts = ["one", "two", large, "four"]
    rows = [{"text": text} for text in texts]
    path = directory / name
    match name:
        case "a.jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "a.json":
            path.write_text(json.dumps(rows, indent=1))
            return path, 8
        case "a.csv":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([["text"], *([text] for text in texts)])
            return path, 4
        case "line.txt":
            path.write_text("\n".join(texts))
        case "paragraph.txt":
            path.write_text("\n\n".join(text.replace("word word", "word\nword", 4) for text in texts))
            return path, 5
        case "file.txt":
            path.write_text("\n".join(texts))
            return path, 1
        case "a.parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
            return path, -3
    return path, 3


def read(path, **options):
    split = path.stem if path.suffix == ".txt" else "line"
    return list(read_rows(path, txt_split=split, max_row_bytes=LIMIT, **options))


@pytest.mark.parametrize("form", FORMS)
def test_bc091_names_the_row_in_every_form(tmp_path, form):
    path, line = rows_of(form, tmp_path, HUGE[: LIMIT * 2])
    items = read(path)
    assert [(item.line, item.problem.code) for item in items if isinstance(item, BadRow)] == [(line, "BC091")]
    assert "4,096 bytes" in next(str(item.problem) for item in items if isinstance(item, BadRow))
    after = [item.row for item in items if abs(item.line) > abs(line)]
    assert after == ([] if form in ("a.csv", "file.txt") else [{"text": "four"}])


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_about_the_limit_is_read(tmp_path, form):
    path, _ = rows_of(form, tmp_path, HUGE[: LIMIT - 100])
    items = read(path)
    assert not any(isinstance(item, BadRow) for item in items)
    assert len(items) == (1 if form == "file.txt" else 4)


@pytest.mark.parametrize("form", FORMS[:-1])  # what pyarrow takes is not traced
def test_memory_does_not_follow_the_row(tmp_path, form):
    path, _ = rows_of(form, tmp_path, HUGE)
    tracemalloc.start()
    try:
        assert any(isinstance(item, BadRow) for item in read(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 << 20


def test_a_row_is_counted_with_all_of_its_messages(tmp_path):
    turns = [{"role": role, "content": "a few words"} for role in ("user", "assistant")] * 60
    path = write(tmp_path, "a.jsonl", json.dumps({"messages": turns}) + "\n")
    assert [item.problem.code for item in read(path)] == ["BC091"]


def test_a_quoted_csv_field_over_many_lines_is_one_row(tmp_path):
    path = write(tmp_path, "a.csv", 'text\n"' + "short\n" * LIMIT + '"\n')
    assert [(item.line, item.problem.code) for item in read(path)] == [(2, "BC091")]


def test_an_endless_element_and_one_that_is_malformed_are_told_apart(tmp_path):
    unended = write(tmp_path, "a.json", '[{"text": "' + "x" * (3 << 20) + '"}]')
    assert [item.problem.code for item in read(unended)] == ["BC091"]
    malformed = write(tmp_path, "b.json", '[{"text" "a"}, {"text": "' + "x" * (3 << 20) + '"}]')
    assert [item.problem.code for item in read(malformed)] == ["BC001"]


def test_the_limit_is_an_option(data):
    data(["a", "b" * 3000])
    assert summary(refused("a.jsonl", max_row_bytes=2048)) == [("BC091", "a.jsonl:2")]
    assert len(prepare("a.jsonl")) == 2


def test_a_first_line_of_deep_nesting_is_an_error_in_json_too(tmp_path):
    path = write(tmp_path, "a.json", '{"a": ' * 100_000 + "\n")
    assert [item.problem.code for item in read_rows(path)] == ["BC010"]


SPACE = st.text(" \n\t", max_size=3)
PIECES = st.sampled_from(
    [
        *(
            '{"a": 1}',
            '{"é": "😀\\u00e9\\ud83d\\ude00"}',
            '{"a": [1, 2.5e3, true]}',
            "12345",
            '{"a": 1, "a": 2}',
            '"x"',
        ),
        *('{"a" 1}', '{"a": "\n"}', "]", '{"b": NaN}', "[", "{", '"', "tru", "\ufeff", "1" * 5000),
    ]
)


@settings(max_examples=80, deadline=None)
@given(pieces=st.lists(st.tuples(SPACE, PIECES, SPACE), max_size=6), array=st.booleans(), block=st.integers(1, 9))
def test_the_size_of_the_window_changes_nothing(tmp_path_factory, pieces, array, block):
    text = ",".join("".join(piece) for piece in pieces)
    path = tmp_path_factory.mktemp("window") / "a.json"
    path.write_text(f"[{text}]" if array else "\n".join("".join(piece) for piece in pieces), encoding="utf-8")
    limit = 1 << 20
    once = [_shown(item) for item in json_documents_of(path, limit)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_documents, "BLOCK", block)
        assert [_shown(item) for item in json_documents_of(path, limit)] == once


def json_documents_of(path, limit):
    try:
        yield from json_documents.read_json_document(path, ReadNotes(), limit)
    except json_documents.BadFile as bad:
        yield BadRow(line=bad.line, problem=bad.problem)


def _shown(item):
    return (item.line, str(item.problem)) if isinstance(item, BadRow) else (item.line, item.row, item.size)
