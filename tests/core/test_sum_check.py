"""A loss that returns a mean is told from one that returns a sum, and no number of the training changes for it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bumblecore_core import PluginError, StepOutput
from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.checked_loss import CheckedLoss
from bumblecore_core.run.sum_check import MOST_TRIES, SumCheck, Verdict, verdict_of
from bumblecore_core.toolkit.policy import Head
from bumblecore_plugins.losses import bumble_losses

PLUGIN = Plugin("losses", "odd", "odd_module")
RECORDS = {record.name: record for record in bumble_losses()}
PREFERENCE = [name for name, record in RECORDS.items() if record.loss_kind == "preference"]


def tokens(count=40, *, dtype=torch.float32, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    weight = (spread * torch.randn(50, 8, generator=generator)).to(dtype).requires_grad_()
    hidden = torch.randn(count, 8, generator=generator).to(dtype).requires_grad_()
    return {"hidden": hidden, "head": Head(weight=weight), "targets": torch.randint(50, (count,), generator=generator)}


def pairs(kind, count=8, *, seed=0, spread=5.0, equal=False):
    """What a loss over completions is passed; `equal`: as before the first step, where policy and reference agree."""
    generator = torch.Generator().manual_seed(seed)
    names = {
        "preference": ("chosen", "rejected", "reference_chosen", "reference_rejected"),
        "feedback": ("completion", "reference"),
        "reward": ("chosen", "rejected"),
    }[kind]
    values = {name: -30 + spread * torch.randn(count, generator=generator).double() for name in names}
    if equal and kind != "reward":
        values |= {name: values[name.removeprefix("reference_").replace("reference", "completion")] for name in names}
    if kind == "preference":
        lengths = torch.randint(1, 20, (2, count), generator=generator)
        values |= {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
    if kind == "feedback":
        values |= {"desirable": torch.rand(count, generator=generator) < 0.5, "kl": torch.tensor(0.7).double()}
    return values


def check(make_loss):
    return SumCheck(PLUGIN, make_loss)


def refused(make_loss, inputs, words):
    with pytest.raises(PluginError) as caught:
        check(make_loss).decides(inputs)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("BC082", "losses.odd")
    assert "the loss 'odd' (module odd_module)" in problem.problem
    assert words in problem.problem, problem.problem


def nll(hidden, head, targets, reduction="none"):
    return cross_entropy(head.logits(hidden).float(), targets, reduction=reduction)


def returning(total, count=lambda targets: targets.numel()):
    def loss(*, hidden, head, targets):
        return StepOutput(loss_sum=total(nll(hidden, head, targets)), count=count(targets))

    return lambda: loss


@pytest.mark.parametrize("count", [2, 3, 7, 200])
@pytest.mark.parametrize(
    "total",
    [
        lambda losses: losses.mean(),
        lambda losses: 0.3 * losses.mean(),
        lambda losses: losses.mean() / 50,
        lambda losses: (losses * (weights := 1 + losses.detach())).sum() / weights.sum(),
    ],
    ids=["mean", "scaled", "over the vocabulary too", "weighted"],
)
def test_a_mean_is_refused(total, count):
    refused(returning(total), tokens(count), "returned a mean, not a sum")


@pytest.mark.parametrize(
    ("count", "words"),
    [(lambda targets: 1, "counted 1 for 40 items, 1 and 1"), (lambda targets: 2 * targets.numel(), "counted 80")],
)
def test_a_count_that_does_not_add_up_is_refused(count, words):
    refused(returning(lambda losses: losses.sum(), count), tokens(), words)


def test_a_mean_over_pairs_and_over_rows_is_refused():
    for kind in ("preference", "feedback", "reward"):

        def mean(**inputs):
            scores = next(iter(inputs.values()))
            return StepOutput(loss_sum=scores.abs().mean(), count=len(scores))

        refused(lambda mean=mean: mean, pairs(kind), "returned a mean")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["causal_lm", "causal_lm_naive"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}])
def test_built_in_token_losses_pass_at_once(name, dtype, options):
    record = RECORDS[name]
    for seed, (count, spread) in enumerate([(2, 0.1), (3, 1.0), (33, 1.0), (500, 4.0)]):
        inputs = tokens(count, dtype=dtype, seed=seed, spread=spread)
        sums = check(lambda: record.build(options=record.options(**options)))
        decided = [sums.decides(inputs | {"hidden": inputs["hidden"] * scale}) for scale in (1.0, 0.5)]
        assert any(decided) or count < 4, (name, count)


@pytest.mark.parametrize("name", [*PREFERENCE, "kto", "bradley_terry"])
def test_other_built_in_losses_are_never_refused(name):
    record = RECORDS[name]
    sums = check(lambda: record.build(options=record.options()))
    decided = sums.decides(pairs(record.loss_kind, equal=True))
    assert decided or name in ("simpo", "orpo", "bradley_terry")
    for seed in range(60):
        for count, spread in ((2, 1.0), (3, 20.0), (64, 5.0)):
            check(sums._make_loss).decides(pairs(record.loss_kind, count, seed=seed, spread=spread))


def test_a_batch_that_cannot_tell_waits_for_the_next():
    sums = check(returning(lambda losses: losses.mean()))
    assert not sums.decides(tokens(1))
    assert not sums.decides(tokens(0))
    with pytest.raises(PluginError):
        sums.decides(tokens(2))
    assert verdict_of(3.0, 5.0, -2.0) is Verdict.UNKNOWN
    assert verdict_of(5.5, 10.0, 0.1) is Verdict.UNKNOWN
    assert verdict_of(float("nan"), 1.0, 1.0) is Verdict.UNKNOWN
    assert verdict_of(0.0, 0.0, 0.0) is Verdict.UNKNOWN
    assert verdict_of(-10.0, -4.0, -6.0) is Verdict.SUM
    assert verdict_of(-5.0, -4.0, -6.0) is Verdict.MEAN


def test_a_loss_that_is_neither_is_given_up():
    in_batch = returning(lambda losses: losses.sum() ** 2)  # grows faster than a sum, as with in-batch negatives
    sums = check(in_batch)
    assert [sums.decides(tokens(8, seed=seed)) for seed in range(MOST_TRIES)] == [False] * (MOST_TRIES - 1) + [True]


class Counting:
    """A loss whose factor grows with each call: its whole lies between its halves."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *, hidden, head, targets):
        self.calls += 1
        return StepOutput(loss_sum=self.calls * nll(hidden, head, targets, "sum"), count=targets.numel())


def test_a_loss_that_keeps_a_state_or_draws_numbers_is_not_judged_and_not_disturbed():
    made = []

    def make():
        made.append(Counting())
        return made[-1]

    loss = make()
    checked = CheckedLoss(loss, PLUGIN, SumCheck(PLUGIN, make))
    for step in (1, 2):
        checked(**tokens())
        assert loss.calls == step
    assert len(made) > 1

    def noisy(*, hidden, head, targets):
        return StepOutput(loss_sum=nll(hidden, head, targets).mean() * torch.rand(()), count=targets.numel())

    assert not check(lambda: noisy).decides(tokens())


def test_random_numbers_gradients_and_memory_stay_as_they_were():
    largest = []

    def drawing(*, hidden, head, targets):
        torch.rand(3), np.random.rand(3), random.random()
        largest.append(targets.numel())
        return StepOutput(loss_sum=nll(hidden, head, targets, "sum"), count=targets.numel())

    inputs = tokens(300)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert check(lambda: drawing).decides(inputs)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert inputs["hidden"].grad is None
    assert inputs["head"].weight.grad is None
    assert max(largest) == 64


def test_a_loss_that_raises_for_a_part_or_cannot_be_built_again_is_left_alone():
    def whole_batches_only(*, hidden, head, targets):
        assert len(targets) == 40
        return StepOutput(loss_sum=nll(hidden, head, targets, "mean"), count=40)

    assert check(lambda: whole_batches_only).decides(tokens())
    assert check(lambda: 1 / 0).decides(tokens())
