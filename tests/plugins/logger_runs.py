"""Small runs to tell to loggers: the figures that real runs have, odd ones among them, and what a resume repeats."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bumblecore_core import RunInfo, RunResult, StepEvent

# Nothing may reach beyond this machine; both packages look at this when they are imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["WANDB_ERROR_REPORTING"] = "false"

BEGAN = 1_700_000_000.625
CONFIG = {
    "stage": {"name": "sft"},
    "train": {"seed": 3, "max_grad_norm": None, "epochs": 1.5},
    "data": {"path": ["a.jsonl", "b.jsonl"], "packing": True},
    "loggers": [{"name": "metrics_json"}, {"name": "csv"}],
}


def events_of(first: int, last: int, *, attempt: int = 0) -> list[StepEvent]:
    """Events of steps `first` to `last`, with an evaluation after every third: values with all their digits, from step
    4 on a figure that was not there before, NaN at step 2 and infinity at step 6. Another `attempt` at a step has the
    same figures, but its own time and speed."""
    events = []
    for step in range(first, last + 1):
        draw = random.Random(step)
        time = BEGAN + 10.0 * step + 1000.0 * attempt
        metrics = {
            "loss": draw.random(),
            "learning_rate": draw.random() * 1e-4,
            "learning_rate/decay": draw.random() * 1e-4,
            "grad_norm": {2: math.nan, 6: math.inf}.get(step, draw.random()),
            "tokens_per_second": 1000.0 * draw.random() + attempt,
        }
        if step >= 4:
            metrics["rewards/accuracies"] = draw.random()
        events.append(StepEvent(step=step, epoch=step / 7, metrics=metrics, time=time))
        if step % 3 == 0:
            evaluation = {"loss": draw.random(), "perplexity": math.inf if step == 3 else draw.random()}
            events.append(StepEvent(step=step, epoch=step / 7, metrics=evaluation, split="eval", time=time + 0.25))
    return events


def info_of(directory: Path, *, history: Sequence[StepEvent] = (), config: Any = CONFIG) -> RunInfo:
    """What a logger is told at start of a run that begins, or goes on after `history`."""
    return RunInfo(
        output_dir=directory,
        stage="sft",
        total_steps=9,
        first_step=history[-1].step if history else 0,
        config=config,
        facts=(("rows", "2"), ("warning", "a | b")),
        features=(("attention", "varlen"),),
        sample=(("question ", False), ("answer", True)),
        history=history,
    )


def tell(logger: Any, info: RunInfo, events: Sequence[StepEvent], *, status: str | None = "complete") -> None:
    """Tells a logger a run; with status None it ends there, as a killed process does."""
    logger.start(info=info)
    for event in events:
        logger.step(event=event)
    if status is not None:
        steps = events[-1].step
        logger.finish(result=RunResult(status=status, steps=steps, final_dir=None, seconds=1.0, summary={}))
