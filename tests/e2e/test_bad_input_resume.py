"""Rows 42 to 52 of bad input: output directories and checkpoints that a run must not take as they are."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from bad_input import good
from bumblecore_core.run.checkpoint import manifest
from bumblecore_core.run.checkpoint.writing import commit, write_part
from bumblecore_core.run.files import fresh_beside
from workbench import make_model_config, make_tokenizer, sentence

TEXT = [{"text": sentence(at, 5 + at % 7)} for at in range(12)]


@pytest.fixture
def saved(scene):
    """A config whose run of four steps has saved checkpoints 2 and 4."""
    scene.rows(TEXT)
    checkpoint = {"save_steps": 2}
    config = scene.config("pretrain", train__max_steps=4, checkpoint=checkpoint)
    scene.call("run", config, code=0)
    return config


def change(config: Path, **settings):
    """Changes dotted keys (`__` for the dot) of a written config."""
    data = yaml.safe_load(config.read_text())
    for key, value in settings.items():
        section, _, inner = key.partition("__")
        if inner:
            data[section][inner] = value
        else:
            data[section] = value
    config.write_text(yaml.safe_dump(data, sort_keys=False))
    return config


def elsewhere(scene, config, **settings):
    """The config with another output directory, and what resumes it from the saved checkpoint 2."""
    change(config, output_dir=str(scene.directory / "other"), **settings)
    return "run", config, "--resume", scene.directory / "out" / "checkpoint-2"


def test_row_42_an_output_directory_that_cannot_be_written(scene):
    scene.rows(TEXT)
    scene.file("out", "a file")
    scene.call("run", scene.config("pretrain")).only("BC042", scene.directory / "out", "output_dir")


def test_row_43_another_runs_directory_names_the_fields_and_both_ways_on(scene, saved):
    change(saved, optimizer={"name": "adamw", "lr": 0.5}, train__seed=7)
    answer = scene.call("run", saved)
    for field, values in (("optimizer.lr", "was 2e-05 when this was saved and is 0.5 now"), ("train.seed", "was 42")):
        line = answer.has("BC043", scene.directory / "out", field, values, f"--allow {field}")
        assert "--overwrite" in line
    assert len(answer.lines) == 2


def test_row_43_overwriting_starts_anew(scene, saved):
    change(saved, train__seed=7)
    out = scene.call("run", saved, "--overwrite", code=0).out
    assert "resumed" not in out
    assert "complete: 4 steps" in out


def test_row_44_a_second_process_is_told_who_holds_the_directory(scene):
    scene.rows(TEXT)
    config = scene.config("pretrain")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(scene.directory / "out")], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        scene.call("run", config).only("BC044", scene.directory / "out", f"process {holder.pid} on ")
    finally:
        holder.kill()
        holder.wait()
    scene.call("run", config, code=0)


HOLD = """
import sys, pathlib
from bumblecore_core.run.directory_lock import held
path = pathlib.Path(sys.argv[1]); path.mkdir()
with held(path, needed=True):
    print("held", flush=True); sys.stdin.read()
"""


def test_row_45_too_little_room_is_a_warning_at_the_start(scene, monkeypatch):
    scene.rows(TEXT)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100_000, 0, 100_000))
    out = scene.call("run", scene.config("pretrain"), code=0).out
    assert "warning" in out
    assert "BC045" in out
    assert "0.1 MB free on the disk" in out


@pytest.mark.parametrize("background", [True, False])
def test_row_45_a_disk_that_fills_up_leaves_the_old_checkpoint(scene, monkeypatch, background):
    scene.rows(TEXT)
    checkpoint = {"save_steps": 2, "background": background}
    config = scene.config("pretrain", train__max_steps=6, checkpoint=checkpoint)
    describe, full = manifest.describe, []

    def fills_up(file):
        if "checkpoint-4" in str(file):
            full.append(file)
            raise OSError(28, "No space left on device")
        return describe(file)

    monkeypatch.setattr("bumblecore_core.run.checkpoint.writing.describe", fills_up)
    scene.call("run", config).only("BC045", "checkpoint-4", "No space left on device")
    assert full
    monkeypatch.undo()
    names = sorted(path.name for path in (scene.directory / "out").iterdir() if "checkpoint" in path.name)
    assert names == ["checkpoint-2"]
    assert "after step 2" in scene.call("run", config, code=0).out


def test_row_45_a_disk_that_fills_up_at_the_end_leaves_nothing_half_written(scene, monkeypatch):
    scene.rows(TEXT)
    config = scene.config("pretrain", checkpoint={"save_steps": 2})
    describe = manifest.describe

    def fills_up(file):
        if ".final.writing" in str(file):
            raise RuntimeError("No space left on device (os error 28)")  # as libraries written in Rust put it
        return describe(file)

    monkeypatch.setattr("bumblecore_core.run.checkpoint.writing.describe", fills_up)
    scene.call("run", config).only("BC045", ".final.writing", "No space left on device")
    names = {path.name for path in (scene.directory / "out").iterdir()}
    assert names == {
        ".lock",
        "run.yaml",
        "run.lock.json",
        "run.info.json",
        "metrics.json",
        "history.jsonl",
        "checkpoint-2",
    }


def test_row_46_a_named_torn_checkpoint_is_refused(scene, saved):
    weights = scene.directory / "out" / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    call = elsewhere(scene, saved)
    scene.call(*call).only("BC046", weights.parent, "model.safetensors has", "--overwrite")


def test_row_46_auto_falls_back_and_names_the_torn_one(scene, saved):
    out = scene.directory / "out"
    shutil.rmtree(out / "final")
    (out / "checkpoint-4" / "state" / "rank-0" / "engine.safetensors").write_bytes(b"")
    answer = scene.call("run", saved, code=0)
    assert "checkpoint-2, after step 2" in answer.out
    assert f"BC046 {out / 'checkpoint-4'}: state/rank-0/engine.safetensors has 0 bytes" in answer.out
    assert "whole" in scene.call("checkpoint", "verify", out / "checkpoint-4", code=0).out


def test_row_46_no_whole_checkpoint_is_an_error_and_not_a_fresh_start(scene, saved):
    out = scene.directory / "out"
    shutil.rmtree(out / "final")
    for step in (2, 4):
        (out / f"checkpoint-{step}" / "config.json").write_text("{}")
    answer = scene.call("run", saved)
    answer.has("BC046", out / "checkpoint-2", "config.json")
    answer.has("BC046", out / "checkpoint-4", "config.json")
    scene.call("checkpoint", "verify", out).has("BC046", out / "checkpoint-4", "config.json")
    assert "torn: config.json" in scene.call("checkpoint", "list", out, code=0).out


def test_row_46_a_checkpoint_that_is_not_there(scene, saved):
    change(saved, output_dir=str(scene.directory / "other"))
    line = scene.call("run", saved, "--resume", scene.directory / "out" / "checkpoint-3").only("BC046", "checkpoint-3")
    assert "There are: checkpoint-2, checkpoint-4" in line


def test_row_47_a_checkpoint_of_another_model(scene, saved):
    other = scene.directory / "wider"
    make_model_config(other, intermediate_size=96)
    make_tokenizer(other)
    call = elsewhere(scene, saved, model__path=str(other))
    line = scene.call(*call).only("BC047", "checkpoint-2", "model.config.intermediate_size", "was 64", "is 96 now")
    assert "--allow" in line


def test_row_48_another_batch_shows_the_arithmetic(scene, saved):
    call = elsewhere(scene, saved, train__micro_batch_size=4)
    line = scene.call(*call).only("BC048", "checkpoint-2 batch")
    assert "2 × 1 accumulated × 1 processes = 2" in line
    assert "4 × 1 accumulated × 1 processes = 4" in line


def test_row_48_another_split_of_the_same_batch_goes_on(scene, saved):
    call = elsewhere(scene, saved, train__micro_batch_size=1, train__gradient_accumulation_steps=2)
    assert "agree up to rounding, not bit for bit" in scene.call(*call, code=0).out


def test_row_50_data_that_changed_since(scene, saved):
    scene.rows([*TEXT[:-1], {"text": "something else"}])
    line = scene.call(*elsewhere(scene, saved)).only("BC050", "checkpoint-2 data", "fingerprint", "--allow data")
    assert line.count("12 examples") == 2
    assert (
        "complete: 4 steps"
        in scene.call("run", saved, "--allow", "data", "--resume", scene.directory / "out" / "checkpoint-2", code=0).out
    )


def test_row_50_the_same_data_elsewhere_is_the_same(scene, saved):
    (scene.directory / "rows.jsonl").rename(scene.directory / "moved.jsonl")
    call = elsewhere(scene, saved, data={"path": str(scene.directory / "moved.jsonl"), "max_length": 128})
    assert "after step 2" in scene.call(*call, code=0).out


def test_row_50_another_tokenizer(scene, saved):
    other = scene.directory / "tokenizer"
    shutil.copytree(scene.model, other)
    data = json.loads((other / "tokenizer.json").read_text())
    data["added_tokens"][0]["lstrip"] = True
    (other / "tokenizer.json").write_text(json.dumps(data))
    call = elsewhere(scene, saved, model={"path": str(scene.model), "dtype": "fp32", "tokenizer": str(other)})
    scene.call(*call).has("BC050", "checkpoint-2 tokenizer", "--allow tokenizer")


def test_row_51_a_checkpoint_of_a_newer_version(scene, saved, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 2)
    newer = scene.directory / "out" / "checkpoint-6"
    temporary = fresh_beside(newer)
    write_part(temporary, 0, lambda directory: (directory / "config.json").write_text("{}"))
    commit(temporary, newer, world_size=1, facts={"step": 6})
    monkeypatch.undo()
    shutil.rmtree(scene.directory / "out" / "final")
    scene.call("run", saved).only("BC051", newer, "format 2", "Update")
    scene.call("checkpoint", "verify", newer).only("BC051", newer)


def test_row_52_resuming_past_the_end_is_complete(scene, saved):
    shutil.rmtree(scene.directory / "out" / "final")
    change(saved, checkpoint={"save_steps": 2, "save_last": False})
    for _ in range(2):
        assert "complete: 4 steps" in scene.call("run", saved, code=0).out


def test_a_plugin_of_another_version_is_named(scene, saved):
    lock = scene.directory / "out" / "checkpoint-2" / "state" / "lock.json"
    changed = json.loads(lock.read_text())
    changed["libraries"]["torch"] = "1.0"
    rewritten(lock, changed)
    call = elsewhere(scene, saved)
    scene.call(*call).only("BC070", "checkpoint-2 library.torch", "was 1.0", "--allow library.torch")
    scene.call(*call, "--allow", "library.torch", code=0)


def rewritten(lock: Path, value: object) -> None:
    """Commits the checkpoint again with another lock."""
    directory = lock.parents[1]
    step = manifest.read_manifest(directory).step
    lock.write_text(json.dumps(value))
    (directory / manifest.MANIFEST).unlink()
    os.makedirs(directory / "state" / "rank-0", exist_ok=True)
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)
    write_part(copy, 0, lambda _: None)
    commit(copy, directory, world_size=1, facts={"step": step})


def test_never_resuming_beside_checkpoints_is_refused(scene, saved):
    shutil.rmtree(scene.directory / "out" / "final")
    scene.call("run", saved, "--resume", "never").only("BC043", "checkpoint-2, checkpoint-4", "--overwrite")


def test_an_older_checkpoint_beside_newer_ones_is_refused(scene, saved):
    out = scene.directory / "out"
    shutil.rmtree(out / "final")
    scene.call("run", saved, "--resume", out / "checkpoint-2").only("BC043", out, "checkpoint-4", "two histories")


def test_a_time_between_saves_needs_its_unit(scene):
    scene.rows(good(2))
    scene.plan("pretrain", checkpoint={"save_every": "10"}).only("BC038", "checkpoint.save_every")
