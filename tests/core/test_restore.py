"""Which checkpoint a run resumes from, and what each rank gets back from it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from bumblecore_core.errors import PluginError, RunError, one
from bumblecore_core.run.checkpoint.folder import checkpoint_path
from bumblecore_core.run.checkpoint.manifest import MANIFEST
from bumblecore_core.run.checkpoint.resume import Start, agreed_start, candidate, choose_start, restore
from bumblecore_core.run.checkpoint.streams import seed_streams, take_streams
from bumblecore_core.run.checkpoint.writing import STATE, commit, rank_directory, write_part
from bumblecore_core.run.files import fresh_beside
from bumblecore_core.run.progress import Progress
from bumblecore_core.toolkit.state_files import write_state
from core import saver_runs

RANKS = 2
LOCK = {"world_size": RANKS}


@dataclass(kw_only=True)
class Engine(saver_runs.Engine):
    """`loaded`: where training state was read from. `failure`: raised in place of that."""

    loaded: list = field(default_factory=list)
    failure: Exception | None = None

    def load_training_state(self, *, directory):
        if self.failure is not None:
            raise self.failure
        self.loaded.append(directory)


def draw():
    return [random.random(), np.random.normal(), *torch.rand(2).tolist()]


def save(output, step):
    """A checkpoint of two ranks whose random streams are those of seeds 10 and 11."""
    temporary = fresh_beside(checkpoint_path(output, step))

    def write(rank, directory):
        if rank == 0:
            (directory / STATE).mkdir(exist_ok=True)
            write_state(directory / STATE, "lock", {**LOCK, "saved_at": step})
            write_state(directory / STATE, "progress", Progress(step=step, skipped=1).to_state())
        seed_streams(10 + rank, 0)
        write_state(rank_directory(directory, rank), "streams", take_streams(torch.device("cpu")))

    for rank in range(RANKS):
        write_part(temporary, rank, lambda directory, rank=rank: write(rank, directory))
    commit(temporary, checkpoint_path(output, step), world_size=RANKS, facts={"step": step})
    return checkpoint_path(output, step)


@pytest.fixture
def output(tmp_path):
    """An output directory with checkpoints 2, 3 and 10, and with 11 torn."""
    for step in (2, 3, 10, 11):
        save(tmp_path / "out", step)
    (checkpoint_path(tmp_path / "out", 11) / MANIFEST).unlink()
    return tmp_path / "out"


def start_at(output, step):
    return Start(path=checkpoint_path(output, step), step=step, lock={**LOCK, "saved_at": step})


@pytest.mark.parametrize("rank", range(RANKS))
def test_each_rank_gets_its_own_streams_back(output, rank):
    engine = Engine(rank=rank, world_size=RANKS)
    seed_streams(10 + rank, 0)
    expected = draw()
    progress = restore(start_at(output, 3), engine, seed=5)
    assert (progress.step, progress.skipped) == (3, 1)
    assert draw() == expected
    assert engine.loaded == [output / "checkpoint-3" / STATE]


@pytest.mark.parametrize("world_size", [1, 3])
def test_on_another_number_of_ranks_streams_begin_at_the_step_and_not_at_the_runs_beginning(output, world_size):
    drawn = []
    for step in (3, 10):
        restore(start_at(output, step), Engine(world_size=world_size), seed=5)
        drawn.append(draw())
        seed_streams(5, 0, step)
        assert drawn[-1] == draw()
    seed_streams(5, 0)
    drawn.append(draw())
    assert len({tuple(values) for values in drawn}) == 3


@pytest.mark.parametrize("failure", [ValueError("shape"), KeyError("moments"), OSError("gone"), RuntimeError("dtype")])
def test_bc046_state_that_an_engine_cannot_take_up(output, failure):
    with pytest.raises(RunError, match=rf"BC046 {output}/checkpoint-3 .*{type(failure).__name__}"):
        restore(start_at(output, 3), Engine(world_size=RANKS, failure=failure), seed=5)
    plugin = one(PluginError, "BC049", "another stage", "Put it back")
    with pytest.raises(PluginError, match="BC049"):
        restore(start_at(output, 3), Engine(world_size=RANKS, failure=plugin), seed=5)


def told_by_rank_0(step):
    """Sums on rank 1: no rank failed, and rank 0 resumes at `step` (None: from the beginning)."""
    return lambda values: [0.0] * len(values) if len(values) == RANKS else [0.0 if step is None else step + 1.0]


@pytest.mark.parametrize(
    ("resume", "step", "moved"), [("auto", 10, []), ("checkpoint-2", 2, [3, 10]), ("../out", 10, [11])]
)
def test_every_rank_resumes_from_the_checkpoint_that_rank_0_chose(output, monkeypatch, resume, step, moved):
    monkeypatch.chdir(output)
    for other in moved:
        checkpoint_path(output, other).rename(output / f"moved-{other}")
    first = agreed_start(Engine(world_size=RANKS), output, resume)
    second = agreed_start(Engine(rank=1, world_size=RANKS, others=told_by_rank_0(step)), output, resume)
    assert (first.step, first.lock["saved_at"]) == (step, step)
    assert (second.path, second.step, second.lock) == (first.path, first.step, first.lock)


def test_a_checkpoint_after_step_0_is_a_start_and_no_checkpoint_is_none(tmp_path):
    assert agreed_start(Engine(rank=1, world_size=RANKS, others=told_by_rank_0(None)), tmp_path, "auto") is None
    save(tmp_path, 0)
    found = agreed_start(Engine(rank=1, world_size=RANKS, others=told_by_rank_0(0)), tmp_path, "auto")
    assert (found.path, found.step) == (tmp_path / "checkpoint-0", 0)


def test_the_first_look_is_at_the_newest_whole_checkpoint_that_can_be_resumed(output):
    assert candidate(output, "auto").step == 10
    assert candidate(output, "never") is None
    assert candidate(output, str(output / "checkpoint-3")).step == 3
    assert candidate(output, str(output / "checkpoint-11")) is None
    assert candidate(output, str(output / "missing")) is None
    assert candidate(output / "missing", "auto") is None


@pytest.mark.parametrize(("step", "newer"), [(2, ["checkpoint-3", "checkpoint-10"]), (3, ["checkpoint-10"]), (10, [])])
def test_bc043_an_older_checkpoint_is_not_resumed_next_to_newer_ones(output, tmp_path, step, newer):
    path = str(checkpoint_path(output, step))
    if newer:
        with pytest.raises(RunError, match=f"BC043 {output} .*: {', '.join(newer)}; two histories would mix"):
            choose_start(output, path)
    else:
        assert choose_start(output, path).step == step
    assert choose_start(output, path, overwrite=True).step == step
    assert choose_start(tmp_path / "another", path).step == step


def test_bc043_the_very_next_checkpoint_is_newer(output):
    checkpoint_path(output, 10).rename(output / "moved")
    with pytest.raises(RunError, match=r"BC043 .*: checkpoint-3; two histories"):
        choose_start(output, str(output / "checkpoint-2"))
