"""Numbers behind plots and tables of runs: thinned curves, limits that one outlier does not set, axes, names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from bumblecore_core.errors import printable
from bumblecore_core.toolkit.history import series
from bumblecore_core.values import StepEvent

Axis: TypeAlias = Literal["step", "tokens", "epoch", "time"]
Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
MOST_POINTS = 4000
FEW_VALUES = 10  # so few are all shown, whatever they are


def with_gaps(events: Sequence[StepEvent], name: str, split: str = "train") -> tuple[Array, Array]:
    """(steps, values) of a figure in events of one split; NaN where a value is not finite, which a line leaves open."""
    found = [(event.step, event.metrics[name]) for event in events if event.split == split and name in event.metrics]
    values = np.array([value for _, value in found], dtype=float)
    values[~np.isfinite(values)] = math.nan
    return np.array([step for step, _ in found], dtype=float), values


def thinned(x: Sequence[float] | Array, y: Sequence[float] | Array, most: int = MOST_POINTS) -> tuple[Array, Array]:
    """A curve of about `most` points at most: of each of `most / 2` equal stretches the lowest and the highest point,
    so that spikes stay, and one NaN where there is any, so that gaps stay; and the first and the last point."""
    across, up = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(up) <= most:
        return across, up
    keep = {0, len(up) - 1}
    for start, end in pairwise(np.linspace(0, len(up), most // 2 + 1).astype(int).tolist()):
        part = up[start:end]
        gaps = np.flatnonzero(np.isnan(part))
        keep.update((start + gaps[:1]).tolist())
        if len(gaps) < len(part):
            keep.update((start + int(np.nanargmin(part)), start + int(np.nanargmax(part))))
    at = sorted(keep)
    return across[at], up[at]


def limits(values: Sequence[float] | Array) -> tuple[float, float] | None:
    """(lowest, highest) to show of a curve; None where it has no finite value.

    That is the whole range, unless a few values lie far outside what the others span: the lowest and highest 2 percent
    of the values (at least one each) are not asked, and where one of them is more than twice the others' span away from
    these, the range ends a little beyond the others.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    lowest, highest = float(known.min()), float(known.max())
    if len(known) < FEW_VALUES:
        return lowest, highest
    low = float(np.quantile(known, 0.02, method="higher"))
    high = float(np.quantile(known, 0.98, method="lower"))
    span = (high - low) or abs(high) or 1.0
    return (
        low - 0.25 * span if lowest < low - 2 * span else lowest,
        high + 0.25 * span if highest > high + 2 * span else highest,
    )


def training_seconds(events: Sequence[StepEvent]) -> tuple[list[int], list[float]]:
    """(steps, seconds spent in optimizer steps up to each), from `steps_per_second` of the train events; empty where an
    event lacks it. Evaluation, saving, and the time between a kill and a resume are not in it."""
    train = [event for event in events if event.split == "train"]
    steps: list[int] = []
    total: list[float] = []
    for event in train:
        rate = event.metrics.get("steps_per_second", 0.0)
        if not 0 < rate < math.inf:
            return [], []
        done, spent = (steps[-1], total[-1]) if steps else (0, 0.0)
        steps.append(event.step)
        total.append(spent + (event.step - done) / rate)
    return steps, total


def positions(events: Sequence[StepEvent], axis: Axis) -> tuple[list[int], list[float]]:
    """(steps, where they lie on an x axis) of the train events; empty where their figures do not tell."""
    if axis == "tokens":
        return series(events, "tokens")
    if axis == "time":
        return training_seconds(events)
    train = [event for event in events if event.split == "train"]
    return [event.step for event in train], [float(event.step if axis == "step" else event.epoch) for event in train]


def steps_per_epoch(events: Sequence[StepEvent]) -> float | None:
    """Optimizer steps of one epoch; None where that shows nothing: of a single event, of less than a tenth of an
    epoch, or where steps do not grow evenly with epochs."""
    train = [event for event in events if event.split == "train"]
    if len(train) < 2 or not 0.1 <= train[-1].epoch < math.inf:
        return None
    found = train[-1].step / train[-1].epoch
    apart = max(abs(event.epoch * found - event.step) for event in train)
    return found if apart <= max(1.0, 0.02 * train[-1].step) else None


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """Of each directory the shortest end of its path that no other's path ends with, fit to be shown."""
    paths = [directory.resolve().parts for directory in directories]
    names = []
    for path in paths:
        others = [other for other in paths if other != path]
        length = next(n for n in range(1, len(path) + 1) if all(other[-n:] != path[-n:] for other in others))
        names.append(printable(str(Path(*path[-length:]))))
    return names


def shortened(text: str, longest: int) -> str:
    """`text` of at most `longest` characters: its beginning and its end, which most often tells names apart."""
    if len(text) <= longest:
        return text
    end = longest * 2 // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"
