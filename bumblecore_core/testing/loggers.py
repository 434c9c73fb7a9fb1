"""Checks of loggers: a small run is told to them, with the odd values that real runs have."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bumblecore_core.values import RunInfo, RunResult, StepEvent

STEPS = 3


def check_logger(logger: Any, *, directory: Path | None = None) -> None:
    """Raises `AssertionError` where a built logger raises while it is told of a run of 3 steps that starts at step 1,
    with an evaluation, a metric that is not finite, a loss's own metric that comes later, a save, and an end without a
    final model.

    `directory`: the run's output directory (made where it is missing); a temporary one when not given.
    """
    if directory is None:
        with tempfile.TemporaryDirectory() as temporary:
            _tell(logger, Path(temporary))
    else:
        directory.mkdir(parents=True, exist_ok=True)
        _tell(logger, directory)


def _tell(logger: Any, directory: Path) -> None:
    info = RunInfo(
        output_dir=directory,
        stage="check",
        total_steps=STEPS,
        first_step=0,
        config={"stage": {"name": "check"}, "train": {"seed": 1, "max_grad_norm": None}},
        facts=(("rows", "2"), ("tokens", "12")),
        features=(("attention", "varlen"),),
        sample=(("question ", False), ("answer", True)),
    )
    _call(lambda: logger.start(info=info), "start(info=…)")
    for step in range(1, STEPS + 1):
        metrics = {
            "loss": math.nan if step == 2 else 1.0 / step,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "tokens_per_second": 9.0,
        }
        metrics |= {"of_the_loss": 1.0} if step > 1 else {}
        event = StepEvent(step=step, epoch=step / STEPS, metrics=metrics)
        _call(lambda event=event: logger.step(event=event), "step(event=…)")  # type: ignore[misc]
    evaluation = StepEvent(step=STEPS, epoch=1.0, metrics={"loss": 0.5}, split="eval")
    _call(lambda: logger.step(event=evaluation), "step(event=…) of an evaluation")
    _call(lambda: logger.saved(directory=directory), "saved(directory=…)")
    result = RunResult(status="interrupted", steps=STEPS, final_dir=None, seconds=1.0, summary={"loss": 0.5})
    _call(lambda: logger.finish(result=result), "finish(result=…)")


def _call(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__}: {error}") from error
