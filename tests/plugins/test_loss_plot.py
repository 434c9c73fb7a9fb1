"""The loss_plot logger: which picture lies there after which run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bumblecore_core import RunInfo, RunResult, StepEvent
from bumblecore_core.testing import check_logger
from bumblecore_core.toolkit.plots import training_figure, write_figure
from bumblecore_plugins.loggers.loss_plot import LossPlot


def info_of(directory, *, history=(), smooth=True):
    return RunInfo(
        output_dir=directory,
        stage="sft",
        total_steps=20,
        first_step=history[-1].step if history else 0,
        config={},
        facts=(),
        features=(),
        sample=(),
        smooth=smooth,
        history=history,
    )


def result_of(status="complete", steps=20):
    return RunResult(status=status, steps=steps, final_dir=None, seconds=1.0, summary={})


def events_of(steps):
    found = []
    for step in range(1, steps + 1):
        found.append(StepEvent(step=step, epoch=step / 10, metrics={"loss": 3 / step, "learning_rate": 1e-3}))
        if step % 5 == 0:
            found.append(StepEvent(step=step, epoch=step / 10, metrics={"loss": 4 / step}, split="eval"))
    return found


def log(directory, events, result, **about):
    """What a run of these events draws; None where there is no picture."""
    logger = LossPlot()
    logger.start(info=info_of(directory, **about))
    for event in events:
        logger.step(event=event)
    logger.finish(result=result)
    assert {path.name for path in directory.iterdir()} <= {"training_loss.png"}
    path = directory / "training_loss.png"
    return path.read_bytes() if path.is_file() else None


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "run-7"
    made.mkdir()
    return made


def test_the_contract(directory):
    check_logger(LossPlot(), directory=directory)
    assert (directory / "training_loss.png").is_file()


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("status", ["complete", "interrupted", "failed"])
def test_the_picture_is_that_of_the_events(directory, tmp_path, status, smooth):
    title = "sft: run-7" if status == "complete" else f"sft: run-7 ({status} after 20 steps)"
    write_figure(training_figure(events_of(20), smooth=smooth, title=title), tmp_path / "twin.png")
    assert log(directory, events_of(20), result_of(status), smooth=smooth) == (tmp_path / "twin.png").read_bytes()


def test_a_resumed_run_draws_all_its_steps_once(directory):
    whole = log(directory, events_of(20), result_of())
    history, rest = events_of(10), events_of(20)[len(events_of(10)) :]
    assert log(directory, rest, result_of(), history=history) == whole
    assert log(directory, [], result_of(), history=events_of(20)) == whole


def test_a_new_run_leaves_no_picture_of_an_earlier_one(directory):
    assert log(directory, events_of(20), result_of()) is not None
    evaluation_alone = [StepEvent(step=0, epoch=0.0, metrics={"loss": 1.0}, split="eval")]
    assert log(directory, evaluation_alone, result_of("failed", steps=0)) is None


def test_a_resumed_run_keeps_the_picture_until_it_ends(directory):
    (directory / "training_loss.png").write_bytes(b"earlier")
    LossPlot().start(info=info_of(directory, history=events_of(10)))
    assert (directory / "training_loss.png").read_bytes() == b"earlier"


CHEAP = """
import json, sys
from pathlib import Path
from bumblecore_core import RunInfo, StepEvent
from bumblecore_plugins.loggers.loss_plot import LossPlot
logger = LossPlot()
logger.start(info=RunInfo(output_dir=Path("."), stage="sft", total_steps=1, first_step=0, config={}, facts=(),
                          features=(), sample=()))
logger.step(event=StepEvent(step=1, epoch=1.0, metrics={"loss": 1.0, "learning_rate": 1e-3}))
print(json.dumps([name for name in ("matplotlib", "numpy", "torch") if name in sys.modules]))
"""


def test_matplotlib_is_imported_only_to_draw(tmp_path):
    done = subprocess.run([sys.executable, "-c", CHEAP], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
