"""The plan and the loop with counts that are sums of weights, on two ranks, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bumblecore_core.errors import RunError
from bumblecore_core.run.data.plan import BatchPlan
from bumblecore_core.run.facts import _largest_micro_batch
from core import loop_ranks
from core.loop_ranks import FORWARD, LENGTHS, STEP, loss_of, make_plan, run_ranks

ITEMS = LENGTHS - 2
WEIGHTS = np.asarray([(0.01, 0.5, 1.0, 1 / 3)[row % 4] for row in range(len(LENGTHS))], dtype=np.float32)
COUNTS = ITEMS * WEIGHTS.astype(np.float64)


@pytest.fixture(autouse=True)
def weighted(monkeypatch):
    batch_of = loop_ranks.batch_of
    monkeypatch.setattr(loop_ranks, "COUNTS", COUNTS)
    monkeypatch.setattr(
        loop_ranks, "batch_of", lambda micro: replace(batch_of(micro), items=int(ITEMS[list(micro.rows)].sum()))
    )


def rows_of(*ranks):
    return [row for rank in ranks for micro in rank if micro.counts for row in micro.rows]


def mean_loss(rows):
    return sum(map(loss_of, rows)) / COUNTS[rows].sum()


def trained(*args, **options):
    outcomes = run_ranks(*args, **options)
    assert [outcome.error for outcome in outcomes] == [None, None]
    return outcomes


def counting(monkeypatch, factor):
    """Has the loss report `factor` times the planned counts."""

    class Engine(loop_ranks.Engine):
        def forward_backward(self, **inputs):
            output = super().forward_backward(**inputs)
            output.count = torch.tensor(float(output.count), dtype=torch.float64) * factor
            return output

    monkeypatch.setattr(loop_ranks, "Engine", Engine)


def test_planned_counts_are_sums_of_weights_and_ints_where_these_are_whole():
    plan = make_plan()
    for window in plan.windows():
        rows = rows_of(*window.micro_batches)
        assert window.count == pytest.approx(COUNTS[rows].sum(), rel=1e-12)
    whole = replace(plan.options, micro_batch_size=2)
    counts = np.full(len(LENGTHS), 0.5)
    plan = BatchPlan(lengths=LENGTHS, counts=counts, rows=np.arange(len(LENGTHS)), options=whole, epochs=1.0)
    micros = [micro for window in plan.windows() for rank in window.micro_batches for micro in rank]
    assert {(len(micro.rows), micro.count, type(micro.count)) for micro in micros} == {(2, 1, int), (1, 0.5, float)}


def test_a_steps_gradient_and_loss_are_divided_by_the_sum_of_weights(monkeypatch):
    plan = make_plan()
    for outcome in trained(monkeypatch, plan=plan):
        for window, gradient, event in zip(plan.windows(), outcome.engine.steps, outcome.events, strict=True):
            rows = rows_of(*window.micro_batches)
            assert gradient == pytest.approx(mean_loss(rows), rel=1e-12)
            assert event.metrics["loss"] == pytest.approx(mean_loss(rows), rel=1e-12)
            micros = len(window.micro_batches[0])
            seconds = micros * FORWARD + STEP
            assert event.metrics["supervised_tokens_per_second"] == pytest.approx(ITEMS[rows].sum() / seconds)


def test_an_evaluation_divides_by_the_sum_of_weights(monkeypatch):
    outcomes = trained(monkeypatch, plan=make_plan(steps=2), eval_steps=2)
    found = [event.metrics["loss"] for event in outcomes[0].events if event.split == "eval"]
    assert found == [pytest.approx(mean_loss(range(len(LENGTHS))), rel=1e-12)]


def test_without_averaging_over_devices_a_rank_divides_by_its_own_weights_below_1_too(monkeypatch):
    monkeypatch.setattr(loop_ranks, "COUNTS", COUNTS / 100)
    plan = make_plan(steps=4)
    assert max(window.rank_count(rank) for window in plan.windows() for rank in (0, 1)) < 1
    outcomes = trained(monkeypatch, plan=plan, average_tokens_across_devices=False)
    for window, gradient in zip(plan.windows(), outcomes[0].engine.steps, strict=True):
        own = [100 * mean_loss(rows_of(rank)) for rank in window.micro_batches]
        assert gradient == pytest.approx(sum(own) / 2, rel=1e-12)


@pytest.mark.parametrize("averaged", [True, False])
def test_a_sum_of_weights_that_was_rounded_to_float32_is_the_planned_one(monkeypatch, averaged):
    plan = make_plan(steps=3)
    exact = trained(monkeypatch, plan=plan, average_tokens_across_devices=averaged)[0].engine.steps
    counting(monkeypatch, 1 + 1e-7)
    assert trained(monkeypatch, plan=plan, average_tokens_across_devices=averaged)[0].engine.steps == exact


def test_a_loss_that_leaves_weights_out_is_divided_by_its_own_count(monkeypatch):
    counting(monkeypatch, 0.75)
    plan = make_plan(steps=3)
    for window, gradient in zip(plan.windows(), trained(monkeypatch, plan=plan)[0].engine.steps, strict=True):
        assert gradient == pytest.approx(mean_loss(rows_of(*window.micro_batches)) / 0.75, rel=1e-12)
    for outcome in run_ranks(monkeypatch, plan=plan, average_tokens_across_devices=False):
        assert isinstance(outcome.error, RunError)
        assert "BC039" in str(outcome.error)


def test_memory_is_estimated_for_tokens_not_for_their_weights():
    lengths, options = np.asarray([9, 4]), replace(make_plan().options, world_size=1)
    for counts, positions in ((np.asarray([6.0, 3.0]), 6), (np.asarray([0.06, 3.0]), 9), (np.asarray([60.0, 3.0]), 9)):
        plan = BatchPlan(lengths=lengths, counts=counts, rows=np.arange(2), options=options, epochs=1.0)
        assert _largest_micro_batch(plan) == (9, positions)
