"""The numbers behind plots and tables of runs."""

from __future__ import annotations

import math
import os
from itertools import pairwise

import numpy as np
import pytest

from bumblecore_core import StepEvent
from bumblecore_core.toolkit.curves import (
    distinct_names,
    limits,
    positions,
    shortened,
    steps_per_epoch,
    thinned,
    training_seconds,
    with_gaps,
)


def train(step, *, epoch=0.0, **metrics):
    return StepEvent(step=step, epoch=epoch, metrics={"loss": 1.0, **metrics})


def evaluation(step, loss=1.0):
    return StepEvent(step=step, epoch=0.0, metrics={"loss": loss}, split="eval")


def test_what_is_not_finite_is_a_gap():
    events = [
        train(1, loss=2.0),
        evaluation(1, 3.0),
        train(2, loss=math.inf),
        train(3, loss=math.nan),
        train(4, nll=5.0),
    ]
    steps, values = with_gaps(events, "loss")
    assert steps.tolist() == [1, 2, 3, 4]
    assert np.array_equal(values, [2.0, math.nan, math.nan, 1.0], equal_nan=True)
    assert [found.tolist() for found in with_gaps(events, "nll")] == [[4], [5.0]]
    assert [found.tolist() for found in with_gaps(events, "loss", "eval")] == [[1], [3.0]]


def test_thinning_keeps_spikes_gaps_and_ends():
    values = np.random.default_rng(0).normal(0, 1, 100_000)
    values[77_777], values[12_345], values[5_000] = 50.0, -60.0, math.nan
    steps = np.arange(1, 100_001)
    x, y = thinned(steps, values)
    assert 3_000 < len(x) <= 4_003
    assert (np.nanmax(y), np.nanmin(y)) == (50.0, -60.0)
    assert (x[0], x[-1]) == (1, 100_000)
    assert x[np.isnan(y)].tolist() == [5_001]
    assert np.all(np.diff(x) > 0)
    assert np.array_equal(y, values[(x - 1).astype(int)], equal_nan=True)


def test_thinning_keeps_the_extremes_of_every_stretch():
    values = np.random.default_rng(1).normal(0, 1, 1003)
    kept = thinned(np.arange(1003), values, most=20)[0].astype(int).tolist()
    edges = [int(1003 * at / 10) for at in range(11)]
    expected = {0, 1002}
    for start, end in pairwise(edges):
        stretch = range(start, end)
        expected |= {min(stretch, key=lambda at: values[at]), max(stretch, key=lambda at: values[at])}
    assert kept == sorted(expected)


def test_a_curve_of_few_points_is_left_alone():
    x, y = thinned([1, 2, 3], [3.0, math.nan, 1.0])
    assert x.tolist() == [1, 2, 3]
    assert np.array_equal(y, [3.0, math.nan, 1.0], equal_nan=True)


def test_limits():
    assert limits([]) is None
    assert limits([math.nan, math.inf]) is None
    assert limits([4.0]) == (4.0, 4.0)
    assert limits([1.0, 500.0, 2.0]) == (1.0, 500.0), "so few are all shown"
    assert limits([float(at) for at in range(100)]) == (0.0, 99.0)
    low, high = limits([*(float(at % 10) for at in range(100)), 1000.0, math.nan])
    assert low == 0
    assert 9 < high < 20
    low, high = limits([*(5.0 + at % 10 for at in range(100)), -1000.0])
    assert high == 14
    assert -10 < low < 5
    assert limits([1.0] * 99 + [1.001]) == (1.0, 1.001)


def test_training_seconds_leave_out_what_lies_between():
    events = [train(2, steps_per_second=2.0), evaluation(2), train(12, steps_per_second=5.0)]
    assert training_seconds(events) == ([2, 12], [1.0, 3.0])
    assert training_seconds([*events, train(13, steps_per_second=math.nan)]) == ([], [])
    assert training_seconds([]) == ([], [])
    assert positions(events, "time") == ([2, 12], [1.0, 3.0])
    assert positions(events, "step") == ([2, 12], [2.0, 12.0])


def test_steps_per_epoch():
    assert steps_per_epoch([train(step, epoch=step / 7) for step in range(1, 30)]) == pytest.approx(7)
    assert steps_per_epoch([train(step, epoch=step / 1000) for step in range(1, 50)]) is None
    assert steps_per_epoch([train(1, epoch=1.0)]) is None
    assert steps_per_epoch([]) is None


def test_names_are_as_short_as_they_can_be(tmp_path):
    def named(*paths):
        return distinct_names([tmp_path / path for path in paths])

    assert named("runs/base", "runs/wide") == ["base", "wide"]
    assert named("a/run", "b/run", "c/other") == [os.path.join("a", "run"), os.path.join("b", "run"), "other"]
    assert named("run", "run/run") == [os.path.join(tmp_path.name, "run"), os.path.join("run", "run")]
    assert named("alone") == ["alone"]


def test_shortened():
    assert shortened("name", 4) == "name"
    assert shortened("0123456789", 7) == "01…6789"
