"""Checkpoints that are written while training continues: what they hold, when they are committed, memory for a copy."""

from __future__ import annotations

import errno
import random

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.errors import RunError
from bumblecore_core.run.checkpoint.history import resume_history
from bumblecore_core.run.checkpoint.manifest import faults
from bumblecore_core.run.checkpoint.saver import MARGIN, VOTES
from bumblecore_core.run.checkpoint.writing import STATE, write_part
from bumblecore_core.toolkit.state_files import read_state
from core.saver_runs import Engine, Run


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Makes the saver of a run that saves each second step in the background."""
    return lambda **options: Run(monkeypatch, tmp_path, **{"save_steps": 2, "background": True, **options})


def begin(made):
    """Two steps and the save after them, whose files wait for `made.parts.gate`."""
    made.parts.gate.clear()
    made.step()
    made.step()
    made.saver.save_if_due(99)


def test_a_checkpoint_holds_the_state_of_its_step_whatever_training_does_meanwhile(run):
    made = run()
    begin(made)
    expected, drawn = random.getstate(), random.random()
    made.step()
    made.parts.gate.set()
    made.saver.finish()
    checkpoint = made.directory / "checkpoint-2"
    assert faults(checkpoint) == []
    assert read_state(checkpoint / STATE, "progress")["step"] == 2
    assert load_file(checkpoint / "model.safetensors")["weight"].tolist() == [2.0] * 3
    assert read_state(checkpoint / STATE / "rank-0", "engine")["moment"].tolist() == [2.0] * 3
    assert [event.step for event in resume_history(checkpoint, 2, made.directory)[1]] == [1, 2]
    random.setstate(read_state(checkpoint / STATE / "rank-0", "streams")["python"])
    assert (random.getstate(), random.random()) == (expected, drawn)
    assert made.engine.copies == [True]


def test_the_last_step_and_a_save_before_the_run_stops_are_written_at_once(run):
    made = run()
    made.train(4)
    made.step()
    made.saver.save(background=False)
    assert made.engine.copies == [True, False, False]  # steps 2, 4 (the last) and 5
    assert made.saved == [2, 4, 5]


def test_a_save_that_is_begun_is_committed_before_the_next_one(run):
    made = run()
    for step in (2, 4):
        made.step()
        made.step()
        made.saver.save(background=True)
        assert made.saved == list(range(2, step, 2))
    made.saver.finish()
    assert made.saved == [2, 4]
    assert made.recorder.directories == [made.directory / f"checkpoint-{step}" for step in (2, 4)]


def test_an_aborted_run_commits_what_it_has_begun(run):
    made = run()
    begin(made)
    made.parts.gate.set()
    made.saver.abandon()
    assert made.saved == [2]
    assert faults(made.directory / "checkpoint-2") == []


def test_an_aborted_rank_of_several_waits_for_its_files_and_asks_the_others_nothing(run):
    made = run(engine=Engine(world_size=2, others=lambda values: values))
    begin(made)
    made.engine.others = None  # a collective would raise
    made.parts.gate.set()
    made.saver.abandon()
    assert made.saved == []
    assert (made.directory / ".checkpoint-2.writing" / "model.safetensors").is_file()


def test_a_checkpoint_is_committed_once_every_rank_has_written(run):
    made = run(engine=Engine(world_size=2, others=lambda values: values))
    begin(made)
    assert made.saver.votes()[-2:] == [0.0, 0.0]
    made.saver.heed([0.0] * (VOTES - 2) + [1.0, 0.0])  # the other rank has; this one would wait for the gate
    assert made.saved == []
    made.parts.gate.set()
    made.saver._writing.thread.join()
    assert made.saver.votes()[-2:] == [1.0, 0.0]
    write_part(made.directory / ".checkpoint-2.writing", 1, lambda temporary: None)
    made.engine.others = lambda values: [0.0] * len(values)  # no rank failed
    made.saver.heed([0.0] * (VOTES - 2) + [2.0, 0.0])
    assert made.saved == [2]


def test_a_failure_of_writing_ends_the_run_at_the_next_step(run):
    made = run()
    made.parts.failure = OSError(errno.ENOSPC, "No space left on device")
    begin(made)
    made.parts.gate.set()
    made.saver._writing.thread.join()
    assert made.saver.votes()[-2:] == [1.0, 1.0]
    with pytest.raises(RunError, match="BC045"):
        made.train(3)
    assert made.saved == []
    assert [path.name for path in made.directory.glob(".*")] == []


class Parameters(torch.nn.Module):
    """10 trained and 100 frozen values of 4 bytes: 440 bytes of weights, 120 of masters and moments."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = torch.nn.Parameter(torch.zeros(2, 5))
        self.frozen = torch.nn.Parameter(torch.zeros(100), requires_grad=False)


SIZES = [
    # adapter, rank, sharded, bytes of the copy
    (None, 0, (), 440 + 120),
    ("lora", 0, (), 40 + 120),
    (None, 1, (), 0),
    (None, 1, ("AdamW moments",), 120),
    (None, 0, ("AdamW moments",), 440 + 120),
]


@pytest.mark.parametrize(("adapter", "rank", "sharded", "size"), SIZES)
def test_the_state_is_copied_only_where_memory_holds_it_a_second_time(run, adapter, rank, sharded, size):
    made = run(engine=Engine(rank=rank, sharded=sharded))
    made.parts.model, made.parts.adapter = Parameters(), adapter
    room = []
    for free in (MARGIN + int(1.1 * size) - 1, MARGIN + int(1.1 * size) + 1, None):
        made.free = free
        room.append(made.saver._room_for_copy())
    assert room == [False, True, False]


@pytest.mark.parametrize(
    ("settings", "copied"),
    [
        ({}, True),
        ({"background": False}, False),
        ({"free": 0}, False),
        ({"engine": Engine(background_saving=False)}, False),
        ({"engine": Engine(rank=1, world_size=2, others=lambda values: values)}, True),
        (
            {"engine": Engine(rank=1, world_size=2, others=lambda values: [0.0] * len(values))},
            False,
        ),  # it has no memory
    ],
)
def test_training_waits_for_a_save_without_a_copy(run, settings, copied):
    made = run(save_steps=1, **settings)
    made.step()
    made.saver.save_if_due(99)
    assert made.engine.copies == [copied]
    assert (made.saver._writing is not None) == copied
    made.saver.finish()
