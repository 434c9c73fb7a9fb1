"""Weights of tokens as a column of integers, and the counts that they add up to."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from bumblecore_core.run.profiling import PluginTimes, timed
from bumblecore_core.toolkit.token_weights import (
    accepts_weights,
    as_count,
    checked_weights,
    from_column,
    same_count,
    to_column,
)


def test_a_count_is_an_int_where_it_is_whole():
    found = [as_count(total) for total in (0.0, 7.0, np.float64(2**53), 2.5, np.float64(0.01))]
    assert found == [0, 7, 2**53, 2.5, 0.01]
    assert [type(count) for count in found] == [int, int, int, float, float]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (2_000_000, 2_000_000, True),
        (2_000_000, 1_999_999, False),  # closer than any tolerance for fractions, and yet a position too few
        (0, 0, True),
        (0.5, 0.5000004, True),
        (0.5, 0.500001, False),
        (3, 3.0000001, True),
        (3.1, 3, False),
    ],
)
def test_whole_counts_are_compared_exactly_and_others_within_rounding(left, right, same):
    assert same_count(left, right) == same_count(right, left) == same


def test_weights_survive_as_integers():
    weights = checked_weights([0.01, 1.0, 3e38, 1e-40, 0.1], 5)
    column = to_column(weights)
    assert column.dtype == np.int32
    assert from_column(column, 5).tolist() == np.asarray([0.01, 1.0, 3e38, 1e-40, 0.1], dtype=np.float32).tolist()
    nothing = to_column(checked_weights([1, 1.0], 2))
    assert (nothing.dtype, len(nothing)) == (np.int32, 0)
    assert from_column(nothing, 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("wrong", [[1.0], [1.0, -0.5], [1.0, float("nan")], [float("inf"), 1.0], [1.0, 1e39]])
def test_weights_that_no_loss_can_use_are_refused(wrong):
    with pytest.raises(ValueError, match="weight"):
        checked_weights(wrong, 2)


def test_whether_a_loss_takes_weights():
    def takes(*, hidden, head, targets, weights=None): ...
    def lacks(*, hidden, head, targets): ...
    def anything(**inputs): ...

    class Called:
        __call__ = staticmethod(takes)

    class Module(torch.nn.Module):
        forward = staticmethod(lacks)

    class WeightedModule(torch.nn.Module):
        forward = staticmethod(takes)

    accepting = [takes, anything, Called(), WeightedModule(), partial(takes, head=None), torch.add]
    lacking = [lacks, Module(), partial(lacks, head=None)]
    for profiled in (lambda loss: loss, lambda loss: timed(PluginTimes(), "losses", "x", loss)):
        assert [accepts_weights(profiled(loss)) for loss in accepting] == [True] * 6
        assert [accepts_weights(profiled(loss)) for loss in lacking] == [False] * 3
