"""How far a run has come, as a checkpoint keeps it."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest

from bumblecore_core.run.progress import Progress
from bumblecore_core.toolkit.state_files import read_state, write_state
from bumblecore_core.values import StepEvent
from core.loop_ranks import make_plan, run_ranks


def through_a_checkpoint(directory, progress):
    directory.mkdir()
    write_state(directory, "progress", progress.to_state())
    return Progress.from_state(read_state(directory, "progress"))


def test_everything_but_the_events_comes_back_from_a_checkpoint(tmp_path):
    values = {
        "step": 7,
        "epoch": 1.25,
        "tokens": 900,
        "skipped": 3,
        "skipped_in_a_row": 2,
        "evaluated": 6,
        "evaluation_loss": 0.1 + 0.2,
        "rows_digest": "d" * 64,
        "last": {"loss": math.inf, "eval_loss": 0.5},
        "pending": {"loss": (3.0, 2), "grad_norm": (math.nan, 1)},
    }
    progress = Progress(**values, events=[StepEvent(step=7, epoch=1.0, split="train", time=0.0, metrics={})])
    assert {field.name for field in dataclasses.fields(progress)} == {*values, "events"}
    found = vars(through_a_checkpoint(tmp_path / "state", progress))
    assert repr(found) == repr({**vars(progress), "events": []})  # NaN does not equal itself


def test_timings_are_left_out_so_that_checkpoints_of_equal_runs_are_equal(tmp_path):
    last = {"loss": 0.5, "tokens_per_second": 9.0, "peak_memory_gb": 2.0, "data_wait": 0.1, "eval_loss": 0.25}
    assert Progress(last=last).to_state()["last"] == {"loss": 0.5, "eval_loss": 0.25}


def test_an_event_is_taken_once():
    progress = Progress()
    for step in (1, 2):
        event = StepEvent(step=step, epoch=0.0, split="train", time=0.0, metrics={})
        progress.events.append(event)
        assert progress.take_events() == [event]
    assert progress.take_events() == []


def test_the_digest_covers_each_row_of_each_step_in_order(tmp_path):
    windows, digest, progress = list(make_plan().windows()), "", Progress()
    for window in windows:
        rows = [[micro.counts, *micro.rows] for rank in window.micro_batches for micro in rank]
        encoded = b"".join(np.asarray(values, dtype=np.int64).tobytes() for values in rows)
        digest = hashlib.sha256(digest.encode() + encoded).hexdigest()
        progress = through_a_checkpoint(tmp_path / str(progress.step), progress)
        progress.count_window(window, tokens=10)
        assert progress.rows_digest == digest
    assert (progress.step, progress.tokens, progress.epoch) == (len(windows), 10 * len(windows), 1.0)
    exchanged = Progress()
    for window in reversed(windows):
        exchanged.count_window(window, tokens=10)
    assert exchanged.rows_digest != progress.rows_digest


def test_an_event_covers_the_steps_before_a_resume(monkeypatch, tmp_path):
    options = {"logging_steps": 4, "total_steps": 9}
    (whole, _) = run_ranks(monkeypatch, plan=make_plan(steps=4), **options)
    (before, _) = run_ranks(monkeypatch, plan=make_plan(steps=2), **options)
    assert before.events == []
    state = before.progress.to_state()
    (after, _) = run_ranks(monkeypatch, plan=make_plan(steps=4), progress=lambda: Progress.from_state(state), **options)
    ((first,), (second,)) = whole.events, after.events
    assert second.step == first.step == 4
    for name in ("loss", "grad_norm", "tokens"):
        assert second.metrics[name] == pytest.approx(first.metrics[name], rel=1e-12)
