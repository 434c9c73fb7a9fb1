"""What token shards depend on, one part at a time: another one makes others, anything else reuses them."""

from __future__ import annotations

import importlib
import os
import sys

import pytest
from data_stages import RECORDS, ByteStage, prepare, record, stage_record
from pydantic import Field

from bumblecore_core.records import DataFormatRecord, Options
from bumblecore_core.run.data import fingerprint as fingerprint_module
from bumblecore_core.run.data.fingerprint import LIBRARIES, code_fingerprint

ROWS = [{"text": "a", "chat": "b"}]


class SomeOptions(Options):
    number: int = Field(1, description="Any number.")


CHANGED = {
    "the tokenizer": {"tokenizer": "other"},
    "max_length": {"max_length": 99},
    "strict": {"strict": True},
    "txt_split": {"txt_split": "file"},
    "what the stage reads": {"reads": "chat"},
    "the stage's name": {"record_of_stage": stage_record(name="other")},
    "the stage's options": {"stage_options": SomeOptions()},
    "an option of the stage": {"stage_options": SomeOptions(number=2)},
    "a named format": {"formats": ["text"]},
    "the format's options": {"formats": ["text"], "format_options": SomeOptions()},
    "an option of the format": {"formats": ["text"], "format_options": SomeOptions(number=2)},
    "the formats to detect": {"records": {**RECORDS, "note": record("note")}},
}
SAME = {
    "num_proc": {"num_proc": 0},
    "num_workers": {"num_workers": 3},
    "max_row_bytes": {"max_row_bytes": 2048},
    "packing": {"packing": True},
    "eval_split": {"eval_split": 0.5},
}


def test_each_part_on_its_own_gives_another_fingerprint(data):
    prints = {"nothing": prepare(data(ROWS)).fingerprint}
    prints |= {name: prepare("a.jsonl", **options).fingerprint for name, options in CHANGED.items()}
    prints["the rows"] = prepare(data([{"text": "b", "chat": "b"}])).fingerprint
    prints["a second file"] = prepare("a.jsonl", data(ROWS, "b.jsonl")).fingerprint
    prints["the order of files"] = prepare("b.jsonl", "a.jsonl").fingerprint
    assert len(set(prints.values())) == len(prints), prints


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_token_reuses_the_shards(data, name):
    first = prepare(data(ROWS))
    again = prepare("a.jsonl", **SAME[name])
    assert (again.fingerprint, again.report.reused) == (first.fingerprint, True)


def test_where_the_files_and_the_cache_are_plays_no_part(data, tmp_path):
    first = prepare(data(ROWS))
    (tmp_path / "elsewhere").mkdir()
    os.rename("a.jsonl", "elsewhere/b.JSONL")
    found = prepare({"path": "elsewhere/b.JSONL", "weight": 2.5}, cache_dir=str(tmp_path / "another"))
    assert found.fingerprint == first.fingerprint


def test_the_form_of_a_file_counts(data):
    first = prepare(data(ROWS))
    os.rename("a.jsonl", "a.txt")
    assert prepare("a.txt").fingerprint != first.fingerprint


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_version_of_a_library_tokenizes_again(data, monkeypatch, library):
    first, installed = prepare(data(ROWS)), fingerprint_module.installed_version
    assert installed(library) != "not installed"
    monkeypatch.setattr(
        fingerprint_module, "installed_version", lambda name: "99.0" if name == library else installed(name)
    )
    assert prepare("a.jsonl").fingerprint != first.fingerprint


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes an importable module of its own and imports it."""
    (tmp_path / "plugins").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "plugins")

    def make(name, source):
        (tmp_path / "plugins" / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield make
    for path in (tmp_path / "plugins").glob("*.py"):
        sys.modules.pop(path.stem, None)


STAGE = "from data_stages import ByteStage\nclass Stage(ByteStage):\n    pass\n"
FORMAT = "from data_stages import FieldFormat\ndef build(*, options):\n    return FieldFormat('text')\n"


@pytest.mark.parametrize("part", ["stage", "build of the stage", "named format", "detected format"])
def test_shards_of_an_edited_plugin_are_not_reused(data, module, part):
    data(ROWS)

    def made(comment):
        stage = module("edited_stage", STAGE + (comment if "stage" in part else "")).Stage
        build = module("edited_format", FORMAT + (comment if "format" in part else "")).build
        records = {"text": DataFormatRecord(name="text", summary="x", build=build, detect=RECORDS["text"].detect)}
        options = {
            "stage": {"stage": stage()},
            "build of the stage": {"record_of_stage": stage_record(build=stage)},
            "named format": {"records": records, "formats": ["text"]},
            "detected format": {"records": records},
        }
        return prepare("a.jsonl", **options[part])

    first, again, edited = made(""), made(""), made("# edited\n")
    assert (again.fingerprint, again.report.reused) == (first.fingerprint, True)
    assert edited.fingerprint != first.fingerprint


def test_code_counts_with_its_neighbours_in_a_package_and_a_module_alone_does_not(tmp_path, monkeypatch, module):
    alone = module("alone", STAGE)
    first = code_fingerprint([alone.Stage()])
    (tmp_path / "plugins" / "beside.py").write_text("x = 1\n")
    assert code_fingerprint([alone.Stage()]) == code_fingerprint([alone.Stage]) == first
    package = tmp_path / "plugins" / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(STAGE)
    monkeypatch.delitem(sys.modules, "package", raising=False)
    importlib.invalidate_caches()
    stage = importlib.import_module("package").Stage
    prints = [code_fingerprint([stage])]
    for file in (package / "beside.py", package / "inner" / "deeper.py"):
        file.write_text("x = 1\n")
        prints.append(code_fingerprint([stage]))
    monkeypatch.delitem(sys.modules, "package")
    assert len({first, *prints}) == 4
    assert code_fingerprint([ByteStage]) not in {first, *prints}
