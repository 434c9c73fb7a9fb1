"""The history file: exact positions for checkpoints, and what is left of a damaged one."""

from __future__ import annotations

import json
import math
import os
import random
import shutil

import pytest

from bumblecore_core.run.checkpoint.history import HISTORY_LOG, HistoryFile, resume_history
from bumblecore_core.toolkit.state_files import write_state
from bumblecore_core.values import StepEvent

ODD = {"loss": 0.1 + 0.2, "grad_norm": math.inf, "low": -math.inf, "tiny": 5e-324, "naïve 雪": -0.0, "whole": 3.0}


def event(step, **changes):
    fields = {"step": step, "epoch": step / 7, "time": 1.7e9 + step / 3, "metrics": {**ODD, "at": step / 9}}
    return StepEvent(**{**fields, **changes})


def events_of(first, last):
    return [event(step, split="eval" if step % 3 == 0 else "train") for step in range(first, last + 1)]


def save(history, directory, step, events):
    """What a checkpoint keeps of the history."""
    state = directory / f"checkpoint-{step}" / "state"
    state.mkdir(parents=True)
    write_state(state, "history", history.append(events))
    return state.parent


@pytest.fixture
def run(tmp_path):
    """A run that has saved after 4, 8 and 12 events."""
    directory, history = tmp_path / "run", None
    history = HistoryFile(directory)
    for step in (4, 8, 12):
        save(history, directory, step, events_of(step - 3, step))
    return directory


def resumed(directory, step, output_dir=None):
    """(history file, events) of an undamaged history."""
    history, events, warnings = resume_history(directory / f"checkpoint-{step}", step, output_dir or directory)
    assert warnings == []
    return history, events


@pytest.mark.parametrize("step", [4, 8, 12])
def test_each_checkpoint_gives_its_own_events_to_the_bit(run, step):
    before = (run / HISTORY_LOG).read_bytes()
    assert resumed(run, step)[1] == events_of(1, step)
    assert (run / HISTORY_LOG).read_bytes() == before, "nothing is cut off before something is appended"
    assert repr(resumed(run, step)[1]) == repr(events_of(1, step))


def test_nan_comes_back(tmp_path):
    checkpoint = save(HistoryFile(tmp_path), tmp_path, 1, [event(1, metrics={"loss": math.nan})])
    (found,) = resume_history(checkpoint, 1, tmp_path)[1]
    assert math.isnan(found.metrics["loss"])


def test_a_run_resumed_from_an_older_checkpoint_writes_the_same_history(run):
    whole = (run / HISTORY_LOG).read_bytes()
    history, _ = resumed(run, 4)
    shutil.rmtree(run / "checkpoint-8")
    shutil.rmtree(run / "checkpoint-12")
    save(history, run, 8, events_of(5, 8))
    save(history, run, 12, events_of(9, 12))
    assert (run / HISTORY_LOG).read_bytes() == whole
    assert [resumed(run, step)[1] for step in (4, 8, 12)] == [events_of(1, step) for step in (4, 8, 12)]


def test_a_checkpoint_does_not_grow_with_the_events(tmp_path):
    history, sizes = HistoryFile(tmp_path), []
    for step, count in ((10**6, 1), (2 * 10**6, 3000), (3 * 10**6, 3000)):
        checkpoint = save(history, tmp_path, step, events_of(1, count))
        sizes.append(sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()))
    assert max(sizes) - min(sizes) < 10
    assert (tmp_path / HISTORY_LOG).stat().st_size > 6000 * 100


def test_events_are_there_before_the_checkpoint_that_counts_on_them(run, monkeypatch):
    history, _ = resumed(run, 12)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    assert history.append(events_of(13, 14))["size"] == synced[-1] == (run / HISTORY_LOG).stat().st_size


@pytest.mark.parametrize("torn", [b"", b'{"step": 13, "ep', b"\0" * 300])
def test_what_a_killed_append_left_behind_is_cut_off(run, torn):
    with (run / HISTORY_LOG).open("ab") as file:
        file.write(torn)
    history, events = resumed(run, 12)
    assert events == events_of(1, 12)
    save(history, run, 14, events_of(13, 14))
    assert resumed(run, 14)[1] == events_of(1, 14)
    assert (run / HISTORY_LOG).read_bytes().count(b"\n") == 14


def test_a_run_that_begins_again_replaces_an_older_file(run):
    shutil.rmtree(run / "checkpoint-4")
    save(HistoryFile(run), run, 4, events_of(1, 4)[::-1])
    assert resumed(run, 4)[1] == events_of(1, 4)[::-1]
    assert (run / HISTORY_LOG).read_bytes().count(b"\n") == 4
    assert [path.name for path in run.iterdir() if "writing" in path.name] == []


def test_events_that_a_run_brings_along_are_written_once_and_first(tmp_path):
    history = HistoryFile(tmp_path, carried=events_of(1, 3))
    for step in (5, 7):
        save(history, tmp_path, step, events_of(step - 1, step))
    assert [resumed(tmp_path, step)[1] for step in (5, 7)] == [events_of(1, 5), events_of(1, 7)]


def test_a_checkpoint_before_the_first_event(tmp_path):
    checkpoint = save(HistoryFile(tmp_path), tmp_path, 1, [])
    history, events, warnings = resume_history(checkpoint, 1, tmp_path)
    assert (events, warnings) == ([], [])
    save(history, tmp_path, 2, events_of(1, 2))
    assert resumed(tmp_path, 2)[1] == events_of(1, 2)


@pytest.mark.parametrize("place", ["elsewhere", "renamed", "link", "the checkpoint alone"])
def test_a_checkpoint_that_was_moved_or_is_resumed_elsewhere(run, tmp_path, place):
    output_dir, checkpoint = tmp_path / "other", run / "checkpoint-8"
    if place == "renamed":
        run.rename(output_dir)
        checkpoint = output_dir / "checkpoint-8"
    elif place == "link":
        (tmp_path / "link").symlink_to(checkpoint)
        checkpoint = tmp_path / "link"
    elif place == "the checkpoint alone":
        output_dir = run
        checkpoint = checkpoint.rename(tmp_path / "saved")
    output_dir.mkdir(exist_ok=True)
    history, events, warnings = resume_history(checkpoint, 8, output_dir)
    assert (events, warnings) == (events_of(1, 8), [])
    save(history, output_dir, 10, events_of(9, 10))
    assert resumed(output_dir, 10)[1] == events_of(1, 10)
    if output_dir != run and run.exists():
        assert resumed(run, 12)[1] == events_of(1, 12), "the run that the checkpoint is of stays as it was"


def test_a_checkpoint_of_an_earlier_version_holds_its_events(tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / "state").mkdir(parents=True)
    fields = ("step", "epoch", "split", "time")
    plain = [{**{name: getattr(e, name) for name in fields}, "metrics": dict(e.metrics)} for e in events_of(1, 3)]
    write_state(checkpoint / "state", "history", plain)
    history, events = resumed(tmp_path, 3)
    assert events == events_of(1, 3)
    save(history, tmp_path, 5, events_of(4, 5))
    assert resumed(tmp_path, 5)[1] == events_of(1, 5)
    assert resumed(tmp_path, 3)[1] == events_of(1, 3)


def lost(run, step=12, output_dir=None):
    """(events that were recovered, how many the warning says are lost)."""
    history, events, (warning,) = resume_history(run / f"checkpoint-{step}", step, output_dir or run)
    assert warning.startswith("BC077 the metric history of a run is damaged: ")
    count = int(warning.rpartition("damaged, ")[2].split()[0])
    save(history, output_dir or run, step + 1, [event(step + 1)])
    assert resumed(output_dir or run, step + 1)[1] == [*events, event(step + 1)]
    return events, count


def test_each_undamaged_event_of_a_damaged_file_is_kept(run):
    intact, generator = (run / HISTORY_LOG).read_bytes(), random.Random(0)
    for _ in range(60):
        at, bit = generator.randrange(len(intact)), 1 << generator.randrange(8)
        damaged = bytearray(intact)
        damaged[at] ^= bit
        (run / HISTORY_LOG).write_bytes(damaged)
        events, count = lost(run)
        assert count == 12 - len(events) in (1, 2)  # two where the bit was a line end's
        assert [e for e in events_of(1, 12) if e in events] == events
        shutil.rmtree(run / "checkpoint-13")


def without(path):
    path.unlink()


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def foreign(path):
    """The history of another run."""
    HistoryFile(path.parent).append(events_of(1, 20))


@pytest.mark.parametrize("harm", [without, fifo, foreign])
def test_a_history_that_is_gone_does_not_keep_a_run_from_training(run, harm):
    harm(run / HISTORY_LOG)
    assert lost(run) == ([], 12)


def test_a_truncated_history_gives_what_is_left(run):
    intact = (run / HISTORY_LOG).read_bytes()
    (run / HISTORY_LOG).write_bytes(intact[: len(intact) // 2])
    events, count = lost(run)
    assert events == events_of(1, len(events))
    assert len(events) == 12 - count in (5, 6)


@pytest.mark.parametrize("entries", [12, 20, 5, 0])
def test_what_is_missing_comes_from_metrics_json(run, entries):
    logged = [event(step, metrics={"loss": step / 3}) for step in range(1, entries + 1)]
    plain = [{"step": e.step, "epoch": e.epoch, "split": e.split, "time": e.time, **e.metrics} for e in logged]
    (run / "metrics.json").write_text(json.dumps(plain))
    without(run / HISTORY_LOG)
    assert lost(run) == (logged[:12], 12 - min(entries, 12))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", "[1]", "\0"])
def test_a_damaged_metrics_json_does_no_harm(run, text):
    (run / "metrics.json").write_text(text)
    without(run / HISTORY_LOG)
    assert lost(run) == ([], 12)


@pytest.mark.parametrize("harm", [without, lambda path: path.write_bytes(b"x")])
def test_a_history_that_is_removed_while_the_run_goes_on(run, harm, capsys):
    history, _ = resumed(run, 12)
    harm(run / HISTORY_LOG)
    save(history, run, 14, events_of(13, 14))
    assert "BC077" in capsys.readouterr().err
    assert resumed(run, 14)[1] == events_of(13, 14)
    save(history, run, 16, events_of(15, 16))
    assert capsys.readouterr().err == ""
    assert resumed(run, 16)[1] == events_of(13, 16)
