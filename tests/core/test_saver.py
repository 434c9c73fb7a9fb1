"""When checkpoints are saved, what of a run they hold, and which of them stay."""

from __future__ import annotations

import errno
import math
import signal

import pytest

from bumblecore_core.errors import RunError
from bumblecore_core.run.checkpoint.folder import inspect
from bumblecore_core.run.checkpoint.saver import VOTES
from bumblecore_core.run.interrupts import SIGNALS, Stopped
from bumblecore_core.run.progress import Progress
from core.saver_runs import Engine, Run


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Makes the saver of a run in `tmp_path`."""
    return lambda **options: Run(monkeypatch, tmp_path, **options)


@pytest.mark.parametrize(
    ("section", "total", "expected"),
    [
        ({"save_steps": 2}, 5, [2, 4, 5]),
        ({"save_steps": 2}, 4, [2, 4]),
        ({"save_steps": 9}, 5, [5]),
        ({"save_every": "10s"}, 10, [3, 6, 9]),
        ({"save_every": "8s"}, 5, [2, 4]),
        ({"save_every": "1h"}, 5, []),
        ({"save_steps": 5, "save_every": "10s"}, 12, [3, 5, 8, 10, 12]),
        ({}, 5, []),
    ],
)
def test_steps_and_the_clock_decide_when_to_save(run, section, total, expected):
    """A step takes 4 seconds; a save of either kind restarts the interval."""
    made = run(**section)
    made.train(total, seconds=4.0)
    assert made.saved == expected
    assert made.recorder.directories == [made.directory / f"checkpoint-{step}" for step in expected]
    assert made.saver.time.checkpoints == len(expected)


def test_the_clock_of_rank_0_decides(run):
    for rank, vote in ((0, 1.0), (1, 0.0)):
        made = run(save_every="10s", engine=Engine(rank=rank, world_size=2))
        assert made.saver.votes() == [0.0] * VOTES
        made.clock.now = 11.0
        assert made.saver.votes() == [vote] + [0.0] * (VOTES - 1)


def test_a_step_that_is_saved_already_is_not_saved_again(run):
    made = run(save_steps=2)
    made.train(4)
    made.saver.save(background=False)  # as at a signal right after the last step
    assert made.recorder.directories == [made.directory / f"checkpoint-{step}" for step in (2, 4)]
    resumed = run(progress=Progress(step=4))
    resumed.saver.boundary()
    resumed.saver.save(background=False)
    assert resumed.recorder.directories == []


def test_a_checkpoint_has_the_evaluation_loss_of_its_own_step(run):
    made, losses = run(save_steps=1), {2: 0.5, 4: math.nan, 5: 0.25}
    for step in range(1, 6):
        if step in losses:
            made.progress.evaluated, made.progress.evaluation_loss = step, losses[step]
            made.step()
            made.saver.save_if_due(99)
        else:
            made.train(step)
    facts = {step: dict(inspect(made.directory / f"checkpoint-{step}").manifest.facts) for step in range(1, 6)}
    plain = {step: {"step": step, "epoch": 0.0, "world_size": 1} for step in range(1, 6)}
    assert facts == {**plain, 2: {**plain[2], "evaluation_loss": 0.5}, 5: {**plain[5], "evaluation_loss": 0.25}}


def test_the_limit_spares_the_checkpoint_that_the_run_resumed_from(run, tmp_path):
    run(save_steps=1).train(2)
    made = run(save_steps=1, save_total_limit=1, progress=Progress(step=2), pinned=[tmp_path / "checkpoint-2"])
    made.train(5)
    assert made.saved == [2, 5]


def test_a_failed_save_leaves_the_earlier_checkpoints_and_no_temporary_directory(run):
    made = run(save_steps=2)
    made.train(2)
    made.parts.failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunError, match="BC045"):
        made.train(4)
    assert made.saved == [2]
    assert [path.name for path in made.directory.glob(".*")] == []
    made.parts.failure = None
    made.saver.save(background=False)  # there is room again
    assert made.saved == [2, 4]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_any_rank_noted_stops_the_run_after_what_is_written_is_committed(run, number):
    made = run(save_steps=2, background=True)
    made.step()
    made.step()
    made.saver.save_if_due(99)
    made.saver._writing.thread.join()
    sums = made.saver.votes()
    sums[1 + SIGNALS.index(number)] += 1.0
    with pytest.raises(Stopped) as stopped:
        made.saver.heed(sums)
    assert stopped.value.number == number
    assert made.saved == [2]
    with pytest.raises(Stopped):
        run(
            engine=Engine(others=lambda values: [float(one == signal.SIGTERM) for one in SIGNALS])
        ).saver.check_interrupt()
