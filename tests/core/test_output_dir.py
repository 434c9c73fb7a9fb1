"""Output directories: writable, of one run, replaced whole or not at all."""

import pytest

from bumblecore_core.errors import RunError
from bumblecore_core.run import output_dir
from bumblecore_core.run.checkpoint.writing import commit, write_part
from bumblecore_core.run.files import fresh_beside
from bumblecore_core.run.lock import numbers_hash

CHECKPOINT = {"resume": "auto", "allow": []}
CONFIG = {
    "stage": {"name": "sft"},
    "train": {"epochs": 1.0, "seed": 1, "logging_steps": 1},
    "checkpoint": CHECKPOINT,
    "loggers": [],
}


def save(directory, name, **facts):
    temporary = fresh_beside(directory / name)
    write_part(temporary, 0, lambda target: (target / "config.json").write_text("{}"))
    commit(temporary, directory / name, world_size=1, facts={"step": 4, **facts})


def finished(directory, **changes):
    config = {**CONFIG, **changes}
    output_dir.write_run_files(directory, config, {})
    save(directory, "final", config=numbers_hash(config))


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
    other = {**CONFIG, "train": {**CONFIG["train"], "epochs": 2.0}}
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


def test_what_changes_no_number_makes_no_other_run(tmp_path):
    finished(tmp_path)
    other = {**CONFIG, "loggers": [{"name": "progress"}], "train": {**CONFIG["train"], "logging_steps": 5}}
    assert output_dir.is_complete(tmp_path, other)


def test_an_allowed_change_is_no_other_run_and_no_complete_one(tmp_path):
    finished(tmp_path)
    save(tmp_path, "checkpoint-4")
    longer = {**CONFIG, "train": {**CONFIG["train"], "epochs": 2.0}, "checkpoint": {**CHECKPOINT, "allow": ["train"]}}
    assert not output_dir.is_complete(tmp_path, longer)


def test_a_finished_run_is_not_replaced_unasked(tmp_path):
    finished(tmp_path)
    longer = {**CONFIG, "train": {**CONFIG["train"], "epochs": 2.0}, "checkpoint": {**CHECKPOINT, "allow": ["train"]}}
    with pytest.raises(RunError, match=r"BC043 .*no checkpoint to go on from.*--overwrite"):
        output_dir.is_complete(tmp_path, longer)


def test_never_resuming_does_not_mean_replacing(tmp_path):
    output_dir.write_run_files(tmp_path, CONFIG, {})
    save(tmp_path, "checkpoint-4")
    never = {**CONFIG, "checkpoint": {**CHECKPOINT, "resume": "never"}}
    with pytest.raises(RunError, match=r"BC043 .*holds checkpoints \(checkpoint-4\).*--overwrite"):
        output_dir.is_complete(tmp_path, never)
    assert not output_dir.is_complete(tmp_path, CONFIG)


def test_clearing_takes_checkpoints_too(tmp_path):
    finished(tmp_path)
    save(tmp_path, "checkpoint-4")
    (tmp_path / ".checkpoint-8.writing").mkdir()
    output_dir.clear(tmp_path)
    assert not any(tmp_path.iterdir())
