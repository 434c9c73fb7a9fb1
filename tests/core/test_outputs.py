"""What commands write: never over what exists unless asked, whole or not there, with the usual permissions."""

import os
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bumblecore_core.errors import RunError
from bumblecore_core.toolkit import outputs
from bumblecore_core.toolkit.csv_cells import csv_cell
from bumblecore_core.toolkit.outputs import (
    MODEL_OUTPUT,
    check_output_directory,
    check_output_file,
    write_output_directory,
    write_output_file,
)


def refused(check, path, force=False):
    with pytest.raises(RunError) as raised:
        check(path, force=force, field="--output")
    (problem,) = raised.value.problems
    assert (problem.place, problem.field) == (str(path), "--output")
    return problem.code


def test_a_file_that_exists_is_refused_and_nothing_else_than_a_file_is_replaced(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert refused(check_output_file, tmp_path / "file") == "BC069"
    for force in (False, True):
        for path in (tmp_path, tmp_path / "link", tmp_path / "none" / "new", tmp_path / "file" / "new"):
            assert refused(check_output_file, path, force) == "BC042"
        assert refused(check_output_file, Path("x" * 300), force) == "BC042"
        check_output_file(tmp_path / "new", force=force, field="--output")
    check_output_file(tmp_path / "file", force=True, field="--output")
    write_output_file(tmp_path / "file", b"new", field="--output")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_output_file(tmp_path / "pipe", force=False, field="--output")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_output_file(tmp_path / "pipe", b"text", field="--output")
    reader.join()
    assert read == [b"text"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path):
    (tmp_path / "a").write_bytes(b"earlier")
    (tmp_path / ".a.writing").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"BC045 .*No space left"):
        write_output_file(tmp_path / "a", b"new", field="--output")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"earlier"


def test_directories_that_are_accepted_and_refused(tmp_path, monkeypatch):
    full, deep = tmp_path / "full", tmp_path / "deep"
    (tmp_path / "empty").mkdir()
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    (deep / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(full)
    for path in (tmp_path / "empty", tmp_path / "new", tmp_path / "far" / "new"):
        check_output_directory(path, force=False, field="--output")
    assert [refused(check_output_directory, path) for path in (full, deep)] == ["BC069", "BC069"]
    check_output_directory(full, force=True, field="--output")
    for path in (deep, tmp_path / "link", full / "notes.txt"):
        assert refused(check_output_directory, path, force=True) == "BC042"
    monkeypatch.chdir(full)
    for path in (full, tmp_path):
        assert refused(check_output_directory, path, force=True) == "BC042"


def write_model(directory: Path) -> None:
    (directory / "config.json").write_text("new")
    save_file({"a": torch.zeros(2)}, directory / "model.safetensors")


def test_a_directory_is_replaced_but_for_files_of_other_kinds(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.md"):
        (out / name).write_text("old")
    inode = (out / "notes.md").stat().st_ino
    write_output_directory(out, write_model, replaces=MODEL_OUTPUT, field="OUT")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "notes.md"]
    assert ((out / "config.json").read_text(), (out / "notes.md").read_text()) == ("new", "old")
    assert (out / "notes.md").stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [out]


def test_a_failure_leaves_the_directory_that_was_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")

    def fail(directory):
        (directory / "config.json").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"BC045 .*OUT: the output cannot be written: No space left"):
        write_output_directory(out, fail, replaces=MODEL_OUTPUT, field="OUT")

    def rename(self, target):
        if self.name == ".out.writing":
            raise OSError(5, "Input/output error")
        return os.rename(self, target)

    monkeypatch.setattr(outputs.Path, "rename", rename)
    with pytest.raises(RunError, match=r"BC042 .*Input/output error"):
        write_output_directory(out, write_model, replaces=MODEL_OUTPUT, field="OUT")
    assert list(tmp_path.iterdir()) == [out]
    assert (out / "config.json").read_text() == "old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_weight_files_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_output_directory(tmp_path / "out", write_model, replaces=MODEL_OUTPUT, field="OUT")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {mode}


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd", "@SUM(1)", "\t=1", "\r=1", "-1 ", "=", "-"])
def test_formulas_become_text(text):
    assert csv_cell(text) == "'" + text


@pytest.mark.parametrize("value", ["-1", "+2.5e-3", "a=b", "", "sft", -1, -0.5, 3, None])
def test_numbers_and_other_texts_stay(value):
    assert csv_cell(value) is value
