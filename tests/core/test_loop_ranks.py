"""The loop on two ranks, with rows that leave one of them a dummy micro-batch, against sums by hand."""

import math

import pytest

from bumblecore_core.errors import RunError
from bumblecore_core.run.progress import Progress
from core.loop_ranks import COUNTS, EVALUATION, FORWARD, LENGTHS, SAVING, STEP, loss_of, make_plan, rate_at, run_ranks


def rows_of(window):
    return [row for rank in window.micro_batches for micro in rank if micro.counts for row in micro.rows]


def mean_loss(rows):
    return sum(map(loss_of, rows)) / sum(int(COUNTS[row]) for row in rows)


def raised(outcomes):
    assert all(outcome.error is None for outcome in outcomes), [outcome.error for outcome in outcomes]


def test_a_dummy_micro_batch_adds_nothing_to_gradient_loss_and_tokens(monkeypatch):
    plan = make_plan()
    windows = list(plan.windows())
    assert any(not micro.counts for rank in windows[-1].micro_batches for micro in rank)
    outcomes = run_ranks(monkeypatch, plan=plan)
    raised(outcomes)
    for outcome in outcomes:
        assert len(outcome.events) == len(windows) == 10
        for window, gradient, event in zip(windows, outcome.engine.steps, outcome.events, strict=True):
            assert gradient == pytest.approx(mean_loss(rows_of(window)))
            assert event.metrics["loss"] == pytest.approx(mean_loss(rows_of(window)))
            assert event.epoch == window.epoch_after
        assert outcome.progress.tokens == LENGTHS.sum()
        assert outcome.events[-1].metrics["tokens"] == LENGTHS.sum()


def test_without_averaging_over_devices_each_rank_divides_by_its_own_count(monkeypatch):
    plan = make_plan(steps=4)
    outcomes = run_ranks(monkeypatch, plan=plan, average_tokens_across_devices=False)
    raised(outcomes)
    for window, gradient in zip(plan.windows(), outcomes[0].engine.steps, strict=True):
        own = [mean_loss([row for micro in rank for row in micro.rows]) for rank in window.micro_batches]
        assert gradient == pytest.approx(sum(own) / 2)


def test_an_evaluation_leaves_dummies_out_and_takes_no_part_in_speed(monkeypatch):
    outcomes = run_ranks(monkeypatch, plan=make_plan(steps=5), eval_steps=2)
    raised(outcomes)
    for outcome in outcomes:
        found = [(event.step, event.metrics["loss"]) for event in outcome.events if event.split == "eval"]
        expected = mean_loss(range(len(LENGTHS)))
        assert found == [(step, pytest.approx(expected)) for step in (2, 4, 5)]
        assert outcome.engine.plateau == [pytest.approx(expected)] * 3
        speeds = [event.metrics["steps_per_second"] for event in outcome.events if event.split == "train"]
        assert speeds == [pytest.approx(1 / (2 * FORWARD + STEP))] * 5  # two micro-batches a rank
    assert EVALUATION > SAVING / 100 > STEP  # what would be noticed


def test_an_evaluation_that_was_done_before_the_run_stopped_is_not_repeated(monkeypatch):
    def at_step_2(evaluated):
        return lambda: Progress(step=2, evaluated=evaluated)

    for evaluated, steps in ((2, [4, 5]), (0, [2, 4, 5])):
        outcomes = run_ranks(monkeypatch, plan=make_plan(steps=5), eval_steps=2, progress=at_step_2(evaluated))
        raised(outcomes)
        assert [event.step for event in outcomes[0].events if event.split == "eval"] == steps


def test_a_step_is_logged_with_the_learning_rate_that_it_used(monkeypatch):
    outcomes = run_ranks(monkeypatch, plan=make_plan(steps=8))
    raised(outcomes)
    assert [event.metrics["learning_rate"] for event in outcomes[0].events] == [rate_at(step) for step in range(8)]


def test_timings_and_memory_are_those_of_all_ranks(monkeypatch):
    outcomes = run_ranks(monkeypatch, plan=make_plan(steps=3), waits=(1.0, 3.0), memory=(2e9, 5e9))
    raised(outcomes)
    for number, waited in ((0, 1.0), (1, 3.0)):
        seconds = 2 * (waited + FORWARD) + STEP
        for window, event in zip(make_plan(steps=3).windows(), outcomes[number].events, strict=True):
            tokens = sum(int(LENGTHS[row]) for row in rows_of(window))
            assert event.metrics["tokens_per_second"] == pytest.approx(tokens / seconds)
            assert event.metrics["supervised_tokens_per_second"] == pytest.approx(window.count / seconds)
            assert event.metrics["data_wait"] == pytest.approx((2 * 1.0 + 2 * 3.0) / 2 / seconds)
            assert event.metrics["peak_memory_gb"] == 5


def test_signals_are_looked_for_within_long_steps_only(monkeypatch):
    fast = run_ranks(monkeypatch, plan=make_plan(steps=3), waits=(0.0, 0.0))
    slow = run_ranks(monkeypatch, plan=make_plan(steps=3), waits=(9.0, 0.0))
    raised([*fast, *slow])
    # The first step's length is not known yet: it counts as long. The last micro-batch is followed by the step itself.
    assert [outcome.saver.checks for outcome in fast] == [1, 1]
    assert [outcome.saver.checks for outcome in slow] == [3, 3]
    assert [outcome.saver.boundaries for outcome in fast] == [4, 4]


def test_the_rank_and_the_rows_of_a_loss_that_is_not_finite_are_named(monkeypatch):
    plan = make_plan(steps=4)
    outcomes = run_ranks(monkeypatch, plan=plan, poison=[(1, 1), (2, 1)])
    rows = [row for micro in plan.window(2).micro_batches[1] for row in micro.rows]
    for outcome in outcomes:
        assert isinstance(outcome.error, RunError)
        line = str(outcome.error)
        assert "BC057" in line
        assert "step 3 on rank 1" in line
        assert all(f"data.json:{row + 1}" in line for row in rows)
        assert outcome.progress.skipped == 2
        assert [math.isfinite(gradient) for gradient in outcome.engine.steps] == [True, False, False]


def test_skipped_steps_that_are_apart_do_not_end_the_run(monkeypatch):
    outcomes = run_ranks(monkeypatch, plan=make_plan(steps=9), poison=[(0, 0), (3, 1), (6, 0)])
    raised(outcomes)
    for outcome in outcomes:
        assert outcome.progress.skipped == 3
        assert outcome.progress.skipped_in_a_row == 0
        assert outcome.events[-1].metrics["skipped_steps"] == 3


def test_a_skip_before_the_run_was_stopped_counts_after_it_resumes(monkeypatch):
    def resumed(**changes):
        state = Progress(step=2, skipped=1, **changes).to_state()
        return lambda: Progress.from_state(state)

    # The engine counts its own steps from 0: step 2 of the run is its first.
    ended = run_ranks(monkeypatch, plan=make_plan(steps=4), poison=[(0, 0)], progress=resumed(skipped_in_a_row=1))
    assert all(isinstance(outcome.error, RunError) for outcome in ended)
    assert "2 steps in a row" in str(ended[0].error)
    going = run_ranks(monkeypatch, plan=make_plan(steps=4), poison=[(0, 0)], progress=resumed(skipped_in_a_row=0))
    raised(going)
    assert going[0].progress.skipped == 2
