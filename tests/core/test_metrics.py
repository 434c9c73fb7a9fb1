"""What micro-batches report, reduced over a step and over two ranks, against sums by hand."""

import math

import pytest
import torch

from bumblecore_core.run.metrics import WindowMetrics
from bumblecore_core.values import Metric, StepOutput


class Rank:
    """One of two ranks; the other one's values are given."""

    def __init__(self, rank, other=()):
        self.rank, self.other = rank, other

    def sum_over_ranks(self, values):
        self.sent = list(values)
        return [left + right for left, right in zip(values, self.other or [0.0] * len(values), strict=True)]


def output(loss, count, **metrics):
    return StepOutput(loss_sum=torch.tensor(loss), count=count, metrics=metrics)


def reduced(outputs, rank, extra=()):
    metrics = WindowMetrics()
    for one, counts in outputs:
        metrics.add(one, counts=counts)
    return metrics.reduce(rank, extra)


def two_ranks(first, second):
    """What each of two ranks gets, after both have sent their part."""
    sent = []
    for number, outputs in enumerate((first, second)):
        rank = Rank(number)
        reduced(outputs, rank)
        sent.append(rank.sent)
    return [reduced(first, Rank(0, sent[1])), reduced(second, Rank(1, sent[0]))]


def kinds(mean, weight, total, last):
    return {
        "mean": Metric(total=mean, weight=weight),
        "sum": Metric(total=total, reduce="sum"),
        "last": Metric(total=last, reduce="last"),
    }


def test_two_ranks_agree_on_sums_means_and_the_last_of_rank_0():
    first = [(output(2.0, 3, **kinds(6.0, 2, 5.0, 1.0)), True), (output(4.0, 1, **kinds(1.0, 1, 7.0, 2.0)), True)]
    second = [(output(8.0, 4, **kinds(5.0, 5, 9.0, 3.0)), True), (output(100.0, 50, **kinds(9, 9, 9, 9)), False)]
    for loss, count, figures, _ in two_ranks(first, second):
        assert (loss, count) == (14.0, 8.0)
        assert figures == {"mean": 12 / 8, "sum": 21.0, "last": 2.0}


def test_a_rank_of_dummies_adds_nothing():
    first = [(output(2.0, 3, **kinds(6.0, 2, 5.0, 1.0)), True)]
    second = [(output(math.nan, 50, **kinds(9, 9, 9, 9)), False)]
    for loss, count, figures, _ in two_ranks(first, second):
        assert (loss, count, figures) == (2.0, 3.0, {"mean": 3.0, "sum": 5.0, "last": 1.0})
    metrics = WindowMetrics()
    metrics.add(second[0][0], counts=False)
    assert metrics.finite()


def test_one_loss_that_is_not_finite_is_noticed():
    metrics = WindowMetrics()
    for loss in (1.0, math.inf, 2.0):
        metrics.add(output(loss, 1), counts=True)
    assert not metrics.finite()


def test_a_mean_of_small_weights_is_still_a_mean():
    figures = reduced([(output(1.0, 1, share=Metric(total=0.1, weight=0.25)), True)], Rank(0))[2]
    assert figures["share"] == pytest.approx(0.4)
    nothing = reduced([(output(1.0, 1, share=Metric(total=0.0, weight=0.0)), True)], Rank(0))[2]
    assert math.isnan(nothing["share"])


def test_bf16_sums_are_added_in_float64():
    outputs = [(StepOutput(loss_sum=torch.tensor(256.0, dtype=torch.bfloat16), count=1), True)]
    outputs += [(StepOutput(loss_sum=torch.tensor(1.0, dtype=torch.bfloat16), count=1), True)] * 8
    assert reduced(outputs, Rank(0))[0] == 264.0  # in bf16 256 + 1 is 256


def test_what_else_is_summed_comes_back_in_its_order():
    metrics = [(output(1.0, 1, **kinds(1.0, 1, 1.0, 1.0)), True)]
    assert reduced(metrics, Rank(0), [4.0, 5.0])[3] == [4.0, 5.0]


def loaded(*assignments):
    return StepOutput(loss_sum=torch.tensor(1.0), count=1, expert_assignments=torch.tensor(assignments))


def test_the_load_of_experts_is_of_the_whole_step_on_all_ranks():
    """Summed before shares are taken: the mean of the micro-batches' smallest shares would be 0."""
    first = [(loaded([4, 0], [1, 3]), True), (loaded([0, 2], [1, 1]), True)]
    second = [(loaded([1, 1], [0, 2]), True), (loaded([90, 0], [90, 0]), False)]
    for _, _, figures, extra in two_ranks(first, second):
        assert figures == {"expert_load/min": 2 / 8, "expert_load/max": 6 / 8}
        assert extra == []


def test_a_rank_of_dummies_adds_no_load():
    first, second = [(loaded([3, 1]), True)], [(loaded([0, 50]), False)]
    for _, _, figures, _ in two_ranks(first, second):
        assert figures == {"expert_load/min": 1 / 4, "expert_load/max": 3 / 4}


def test_what_ranks_add_up_follows_the_load():
    rank = Rank(0)
    *_, figures, extra = reduced([(loaded([3, 1], [2, 2]), True)], rank, extra=(7.0, 8.0))
    assert extra == [7.0, 8.0]
    assert figures == {"expert_load/min": 1 / 4, "expert_load/max": 3 / 4}
