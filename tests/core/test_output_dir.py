"""Output directories: writable, of one run, replaced whole or not at all."""

import pytest

from bumblecore_core.errors import RunError
from bumblecore_core.run import output_dir
from bumblecore_core.run.saving import replace_directory

CONFIG = {"stage": {"name": "sft"}, "train": {"epochs": 1.0, "seed": 1}}


def finished(directory):
    output_dir.write_run_files(directory, CONFIG, {})
    (directory / "final").mkdir()
    (directory / "final" / "config.json").write_text("{}")


def test_a_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="BC042"):
        output_dir.require_writable(tmp_path / "file" / "run")


def test_the_same_config_is_found_complete(tmp_path):
    assert not output_dir.is_complete(tmp_path, CONFIG)
    finished(tmp_path)
    assert output_dir.is_complete(tmp_path, CONFIG)
    (tmp_path / "final" / "config.json").unlink()
    assert not output_dir.is_complete(tmp_path, CONFIG)


def test_another_runs_directory_is_refused_with_the_differing_fields(tmp_path):
    finished(tmp_path)
    other = {"stage": {"name": "sft"}, "train": {"epochs": 2.0, "seed": 1}}
    with pytest.raises(RunError, match=r"BC043 .*differing: train\.epochs"):
        output_dir.is_complete(tmp_path, other)


def test_clearing_leaves_what_is_not_ours(tmp_path):
    finished(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    output_dir.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_clearing_a_directory_that_no_run_wrote_deletes_nothing(tmp_path):
    (tmp_path / "final").mkdir()
    output_dir.clear(tmp_path)
    assert (tmp_path / "final").is_dir()


def test_a_failing_save_leaves_the_old_directory_as_it_was(tmp_path):
    replace_directory(tmp_path / "final", lambda target: (target / "a").write_text("old"))

    def break_off(target):
        (target / "a").write_text("new")
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        replace_directory(tmp_path / "final", break_off)
    assert (tmp_path / "final" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    replace_directory(tmp_path / "final", lambda target: (target / "b").write_text("new"))
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["b"]
