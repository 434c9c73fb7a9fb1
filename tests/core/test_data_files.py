"""Entries of data.path to concrete files."""

from __future__ import annotations

import os

import pytest

from bumblecore_core.config.resolved import Selected
from bumblecore_core.config.schema import DataFile
from bumblecore_core.errors import DataError
from bumblecore_core.records import DataFormatRecord, NoOptions
from bumblecore_core.run.data.files import resolve_files


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.jsonl", "notes.json", "deep/er/c.jsonl", "odd[1].json", "image.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def paths(*entries: str) -> list[str]:
    files = [DataFile(path=entry) for entry in entries]
    return [str(source.path) for source in resolve_files(files, [None] * len(files))]


def refused(*entries: str) -> list[tuple[str, str, str]]:
    with pytest.raises(DataError) as caught:
        paths(*entries)
    return [(problem.code, problem.place, problem.field) for problem in caught.value.problems]


def test_files_keep_the_entries_order_and_globs_are_sorted(here):
    assert paths("notes.json", "*.jsonl") == ["notes.json", "a.jsonl", "b.jsonl"]
    assert paths("**/c.jsonl", "odd[1].json") == ["deep/er/c.jsonl", "odd[1].json"]
    assert paths(str(here / "a.jsonl")) == [str(here / "a.jsonl")]


def test_weight_and_format_go_to_every_match(here):
    record = DataFormatRecord(name="f", summary="x", build=lambda *, options: None, detect=lambda row: None)
    chosen = Selected(record=record, options=NoOptions())
    sources = resolve_files([DataFile(path="*.jsonl", weight=2.0), DataFile(path="notes.json")], [chosen, None])
    assert [(str(s.path), s.weight, s.format) for s in sources] == [
        ("a.jsonl", 2.0, chosen),
        ("b.jsonl", 2.0, chosen),
        ("notes.json", 1.0, None),
    ]


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("a.jsnl", "a.jsonl"),
        ("note.json", "notes.json"),
        ("deep/c.jsonl", "deep/er/c.jsonl"),
        ("dep/er/c.jsonl", "deep/er/c.jsonl"),
        ("not*.jsn", "notes.json"),
    ],
)
def test_bc021_names_the_nearest(here, path, near):
    with pytest.raises(DataError) as caught:
        paths(path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.place, problem.field) == ("BC021", path, "data.path")
    assert f"'{near}" in problem.fix


def test_bc021_where_nothing_is_near_says_what_paths_are_relative_to(here):
    with pytest.raises(DataError, match=f"relative to the working directory, {os.getcwd()}"):
        paths("zzzzzzzzzzzzzzzz.parquet")


def test_every_bad_entry_is_reported(here):
    assert refused("none.csv", "a.jsonl", "deep", "image.png", "*.jsonl") == [
        ("BC021", "none.csv", "data.path[0]"),
        ("BC021", "deep", "data.path[2]"),
        ("BC004", "image.png", "data.path[3]"),
        ("BC039", "a.jsonl", "data.path[4]"),
    ]


def test_a_link_to_the_same_file_is_a_repetition(here):
    (here / "link.jsonl").symlink_to(here / "a.jsonl")
    assert refused("a.jsonl", "link.jsonl") == [("BC039", "link.jsonl", "data.path[1]")]


def test_a_path_that_no_file_system_takes_is_not_found(here):
    with pytest.raises(DataError) as caught:
        paths("y/" * 3000)
    (problem,) = caught.value.problems
    assert problem.code == "BC021"
