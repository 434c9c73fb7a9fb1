"""Weights on the way to a loss: one that does not accept them is refused where they matter, and sums are still told."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from bumblecore_core import PluginError, StepOutput
from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.checked_loss import CheckedLoss
from bumblecore_core.run.sum_check import SumCheck
from bumblecore_core.toolkit.policy import Head
from bumblecore_plugins.losses.fused import FusedCausalLm
from bumblecore_plugins.losses.naive import NaiveCausalLm

PLUGIN = Plugin("losses", "odd", "odd_module")


def tokens(count=40, *, weight=None, seed=0):
    """What a loss is called with; `weight`: of the odd tokens."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(50, 8, generator=generator).requires_grad_()
    hidden = torch.randn(count, 8, generator=generator).requires_grad_()
    found = {"hidden": hidden, "head": Head(weight=matrix), "targets": torch.randint(50, (count,), generator=generator)}
    if weight is not None:
        found["weights"] = torch.ones(count)
        found["weights"][1::2] = weight
    return found


def returning(total, count):
    """A loss of `total(losses, weights)`, which counts `count(losses, weights)`."""

    def loss(*, hidden, head, targets, weights=None):
        losses = cross_entropy(head.logits(hidden).float(), targets, reduction="none")
        factors = torch.ones_like(losses) if weights is None else weights
        return StepOutput(loss_sum=total(losses, factors), count=count(losses, factors))

    return loss


def weighted_sum(losses, weights):
    return (losses * weights).sum()


def sum_of(losses, weights):
    return weights.sum()  # in float32, as a plugin may do it


def test_a_loss_without_the_keyword_is_refused_only_for_weights_other_than_1():
    def lacks(*, hidden, head, targets):
        calls.append(len(targets))
        return StepOutput(loss_sum=cross_entropy(head.logits(hidden), targets, reduction="sum"), count=len(targets))

    calls = []
    checked = CheckedLoss(lacks, PLUGIN, None)
    plain = checked(**tokens())
    assert torch.equal(checked(**tokens(weight=1.0)).loss_sum, plain.loss_sum)
    assert torch.equal(checked(**tokens(), weights=None).loss_sum, plain.loss_sum)
    with pytest.raises(PluginError) as caught:
        checked(**tokens(weight=0.5))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("BC085", "losses.odd")
    assert "the loss 'odd' (module odd_module) does not accept `weights`" in problem.problem
    assert calls == [40] * 3


def test_a_loss_with_the_keyword_gets_the_weights_as_they_are():
    passed = []

    def takes(*, hidden, head, targets, weights=None):
        passed.append(weights)
        return StepOutput(loss_sum=hidden.sum(), count=len(targets))

    checked = CheckedLoss(takes, PLUGIN, None)
    for weight in (1.0, 0.5):
        checked(**tokens(weight=weight))
    checked(**tokens())
    assert [None if weights is None else weights[1].item() for weights in passed] == [1.0, 0.5, None]


@pytest.mark.parametrize("weight", [0.01, 0.5, 30.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda: FusedCausalLm(label_smoothing=0.1, z_loss=1e-3),
        lambda: NaiveCausalLm(),
        lambda: returning(weighted_sum, sum_of),
    ],
    ids=["fused", "naive", "in float32"],
)
def test_weighted_sums_are_accepted_at_once(make, weight):
    assert SumCheck(PLUGIN, make).decides(tokens(weight=weight))
    assert SumCheck(PLUGIN, make).decides(tokens(300, weight=weight, seed=1))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (returning(lambda losses, weights: weighted_sum(losses, weights) / weights.sum(), sum_of), "returned a mean"),
        (returning(lambda losses, weights: (losses * weights).mean(), sum_of), "returned a mean"),
        (
            returning(weighted_sum, lambda losses, _: len(losses)),
            "counted 40 for 40 items, 20 and 20 .* add up to 20.2",
        ),
        (returning(weighted_sum, lambda _, weights: weights.sum() * 1.001), "add up to 20.2"),
        (returning(weighted_sum, lambda _, weights: weights.mean()), "counted 0.505 for 40 items"),
    ],
)
def test_means_over_weights_and_counts_of_tokens_are_refused(loss, words):
    with pytest.raises(PluginError, match=rf"BC082 losses.odd: .*{words}"):
        SumCheck(PLUGIN, lambda: loss).decides(tokens(weight=0.01))


def test_a_loss_that_counts_fewer_tokens_than_it_is_passed_is_accepted():
    def masked(losses, weights):
        return weights * (torch.arange(len(losses)) % 4 != 3)

    loss = returning(
        lambda losses, weights: (losses * masked(losses, weights)).sum(), lambda *found: masked(*found).sum()
    )
    assert SumCheck(PLUGIN, lambda: loss).decides(tokens(weight=0.5))
