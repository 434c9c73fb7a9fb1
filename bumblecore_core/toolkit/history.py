"""What a run left behind to look at: its history, how it was set up, and how it ended."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from bumblecore_core.errors import RunError, one, printable
from bumblecore_core.values import StepEvent

HISTORY_FILE = "metrics.json"
INFO_FILE = "run.info.json"
RUN_FILE = "run.yaml"
LOCK_FILE = "run.lock.json"
EVENT_KEYS = ("step", "epoch", "split", "time")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run's output directory, read. `config`: the resolved one; `info`: what `run.info.json` holds (stage, reads,
    facts, features, sample, smooth, total_steps, and once it has ended status, steps, seconds, summary, problem)."""

    directory: Path
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    lock: Mapping[str, Any]
    events: Sequence[StepEvent]

    @property
    def name(self) -> str:
        """How the run is called in tables and legends."""
        return self.directory.resolve().name

    @property
    def status(self) -> str:
        """complete, interrupted, failed, or `running` where it has not ended (or was killed)."""
        return str(self.info.get("status", "running"))

    def series(self, name: str, split: Literal["train", "eval"] = "train") -> tuple[list[int], list[float]]:
        """(steps, values) of a figure, without values that are not finite."""
        return series(self.events, name, split)


def read_run(directory: Path) -> RunRecord:
    """Reads what a run wrote into its output directory.

    Raises `RunError` BC061 where that is no run's directory or the run kept no history, BC064 for a file that does not
    hold what a run writes.
    """
    if not os.path.isfile(directory / RUN_FILE):  # Path.is_file raises where a name is too long or a parent closed
        fix = "Name the output_dir of a run"
        raise one(
            RunError, "BC061", f"there is no {RUN_FILE} here, so it is no run's directory", fix, place=str(directory)
        )
    if not os.path.isfile(directory / HISTORY_FILE):
        fix = "Add metrics_json to the run's loggers"
        raise one(RunError, "BC061", f"the run kept no history ({HISTORY_FILE})", fix, place=str(directory))
    try:
        loaded = yaml.safe_load((directory / RUN_FILE).read_text(encoding="utf-8"))
        config = loaded if isinstance(loaded, dict) else {}
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # ValueError: not UTF-8, or no such day as 2024-13-01
        raise _unreadable(directory / RUN_FILE) from error
    return RunRecord(
        directory=directory,
        config=config,
        info=_json(directory / INFO_FILE),
        lock=_json(directory / LOCK_FILE),
        events=read_events(directory / HISTORY_FILE),
    )


def read_events(path: Path) -> list[StepEvent]:
    """The events of a `metrics.json`; null stands for NaN. Raises `RunError` BC064 where it is not one."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise _unreadable(path)
        return [_event(entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _unreadable(path) from error


def series(
    events: Sequence[StepEvent], name: str, split: Literal["train", "eval"] = "train"
) -> tuple[list[int], list[float]]:
    """(steps, values) of a figure in events of one split, without values that are not finite."""
    found = [(event.step, event.metrics[name]) for event in events if event.split == split and name in event.metrics]
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def smoothed(values: Sequence[float], span: float | None = None) -> list[float]:
    """The average around each value with exponentially falling weights, as wide on each side as a moving average over
    `span` values (a fortieth of them all when not given, at least 5). It looks both ways, so a curve that falls is not
    drawn above itself; the last value's is the ordinary moving average."""
    decay = 1 - 2 / (1 + (max(5.0, len(values) / 40) if span is None else span))
    before, after = _weighted(values, decay), _weighted(values[::-1], decay)[::-1]
    return [
        (left + right - value) / (left_weight + right_weight - 1)
        for value, (left, left_weight), (right, right_weight) in zip(values, before, after, strict=True)
    ]


def _weighted(values: Sequence[float], decay: float) -> list[tuple[float, float]]:
    """(sum, sum of weights) up to and with each value."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        found.append((total, weight))
    return found


def _event(entry: Mapping[str, Any]) -> StepEvent:
    metrics = {
        printable(name): math.nan if value is None else float(value)
        for name, value in entry.items()
        if name not in EVENT_KEYS
    }
    return StepEvent(
        step=int(entry["step"]),
        epoch=float(entry["epoch"]),
        split=entry["split"],
        time=float(entry.get("time", 0.0)),
        metrics=metrics,
    )


def _json(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path) from error
    return found if isinstance(found, dict) else {}


def _unreadable(path: Path) -> Exception:
    return one(RunError, "BC064", "it does not hold what a run writes there", "Train the run again", place=str(path))
