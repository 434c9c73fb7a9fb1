"""The conformance kit's checks of losses accept good ones and say what is wrong with bad ones."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional

from bumblecore_core import Metric, StepOutput
from bumblecore_core.testing import check_feedback_loss, check_preference_loss, check_reward_loss, check_token_loss


def good_loss(*, hidden, head, targets):
    losses = functional.cross_entropy(head.logits(hidden).float(), targets, reduction="none")
    right = (head.logits(hidden).argmax(-1) == targets).sum()
    metrics = {"accuracy": Metric(total=right, weight=targets.numel()), "last": Metric(total=1.0, reduce="last")}
    return StepOutput(loss_sum=losses.sum(), count=targets.numel(), metrics=metrics)


def mean_loss(*, hidden, head, targets):
    loss = functional.cross_entropy(head.logits(hidden).float(), targets)
    return StepOutput(loss_sum=torch.nan_to_num(loss), count=targets.numel())


def nan_when_empty(*, hidden, head, targets):
    loss = functional.cross_entropy(head.logits(hidden).float(), targets) * targets.numel()
    return StepOutput(loss_sum=loss, count=targets.numel())


def wrong_count(**inputs):
    output = good_loss(**inputs)
    output.count += 1
    return output


def half_precision(**inputs):
    output = good_loss(**inputs)
    output.loss_sum = output.loss_sum.bfloat16()
    return output


def vector(**inputs):
    output = good_loss(**inputs)
    output.loss_sum = output.loss_sum[None]
    return output


def detached(**inputs):
    output = good_loss(**inputs)
    output.loss_sum = output.loss_sum.detach()
    return output


def bare_tensor(**inputs):
    return good_loss(**inputs).loss_sum


def mean_metric(**inputs):
    output = good_loss(**inputs)
    output.metrics["mean_loss"] = Metric(total=output.loss_sum.detach() / max(1, output.count), weight=output.count)
    return output


def unknown_reduction(**inputs):
    output = good_loss(**inputs)
    output.metrics["accuracy"] = Metric(total=1.0, reduce="max")
    return output


def in_place(*, hidden, head, targets):
    output = good_loss(hidden=hidden, head=head, targets=targets)
    hidden.data.add_(1)
    return output


def needs_the_weight(*, hidden, head, targets):
    logits = hidden @ (head.weight.T if head.weight is not None else torch.eye(hidden.shape[-1]) * 2)
    return StepOutput(loss_sum=functional.cross_entropy(logits, targets, reduction="none").sum(), count=targets.numel())


class IgnoresTheFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets):
        with torch.enable_grad():
            hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            loss = functional.cross_entropy(hidden @ weight.T, targets, reduction="none").sum()
            ctx.save_for_backward(*torch.autograd.grad(loss, (hidden, weight)))
        return loss.detach()

    @staticmethod
    def backward(ctx, gradient):
        return (*ctx.saved_tensors, None)


def ignores_the_factor(*, hidden, head, targets):
    return StepOutput(loss_sum=IgnoresTheFactor.apply(hidden, head.weight, targets), count=targets.numel())


def test_a_good_token_loss():
    check_token_loss(good_loss)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (mean_loss, "is it a mean"),
        (nan_when_empty, "loss_sum of 0 items is nan"),
        (wrong_count, "count is 13 for 12"),
        (half_precision, "bfloat16, not float32"),
        (vector, "shape"),
        (detached, "no gradient"),
        (bare_tensor, "not a StepOutput"),
        (mean_metric, "totals of metric 'mean_loss'"),
        (unknown_reduction, "reduces by 'max'"),
        (in_place, "in place"),
        (needs_the_weight, "head without weight"),
        (ignores_the_factor, r"0\.25 × the sum"),
    ],
)
def test_a_bad_token_loss(loss, says):
    with pytest.raises(AssertionError, match=says):
        check_token_loss(loss)


def times(losses, factors):
    return (losses * factors).sum()


def weighted_loss(*, hidden, head, targets, weights=None, total=times, count=None, nll=times):
    """A good loss, unless `total`, `count` or `nll` (a metric's) is computed otherwise from (losses, weights)."""
    losses = functional.cross_entropy(head.logits(hidden).float(), targets, reduction="none")
    factors = torch.ones_like(losses) if weights is None else weights
    number = count(losses, factors) if count else float(factors.double().sum())
    metrics = {"nll": Metric(total=nll(losses.detach(), factors), weight=number)}
    return StepOutput(loss_sum=total(losses, factors), count=number, metrics=metrics)


def test_a_good_token_loss_with_weights():
    check_token_loss(weighted_loss)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"total": lambda losses, factors: losses.sum()}, "the sum with weights of 0"),
        ({"count": lambda losses, factors: len(losses)}, "count is 12 for .* as the sum of the weights"),
        ({"total": lambda losses, factors: (losses * factors**2).sum()}, "twice the weights"),
        ({"total": lambda losses, factors: (losses * (factors > 0)).sum()}, "twice the weights"),
        ({"total": lambda losses, factors: (losses * (2 - factors)).sum()}, "weights of 0"),
        ({"total": lambda losses, factors: 3 * (losses * factors).sum() - 2 * losses.sum()}, "weights of 0"),
        ({"total": lambda losses, factors: (losses * factors.flip(0)).sum()}, "weights of 0"),
        ({"total": lambda losses, factors: losses.sum() * factors.sum() / max(1, len(factors))}, "weights of 0"),
        ({"nll": lambda losses, factors: losses.sum()}, "metric 'nll' with weights of 0"),
        ({"nll": lambda losses, factors: (losses * factors**2).sum()}, "metric 'nll' with twice the weights"),
    ],
)
def test_a_bad_token_loss_with_weights(wrong, says):
    with pytest.raises(AssertionError, match=says):
        check_token_loss(partial(weighted_loss, **wrong))


def test_a_loss_that_forgets_the_weights_of_logits():
    def forgets(*, head, weights=None, **inputs):
        return weighted_loss(head=head, weights=weights, **inputs, **({} if head.weight is not None else SUM))

    SUM = {"total": lambda losses, factors: losses.sum()}
    with pytest.raises(AssertionError, match="the sum from weighted logits"):
        check_token_loss(forgets)


def preference(*, chosen, rejected, reference_chosen, reference_rejected, chosen_lengths, rejected_lengths):
    margin = chosen - rejected
    if reference_chosen is not None:
        margin = margin - (reference_chosen - reference_rejected)
    return StepOutput(loss_sum=-functional.logsigmoid(margin).sum(), count=margin.numel())


@pytest.mark.parametrize("reference", [True, False])
def test_a_good_preference_loss(reference):
    check_preference_loss(preference, reference=reference)


def test_a_preference_loss_that_averages():
    def averaged(**inputs):
        output = preference(**inputs)
        return StepOutput(loss_sum=output.loss_sum / max(1, output.count), count=output.count)

    with pytest.raises(AssertionError, match="is it a mean"):
        check_preference_loss(averaged)


def feedback(*, completion, reference, desirable, kl):
    ratios = completion if reference is None else completion - reference
    sign = torch.where(desirable, 1.0, -1.0)
    metrics = {"chosen": Metric(total=(ratios.detach() * desirable).sum(), weight=desirable.sum())}
    return StepOutput(loss_sum=-functional.logsigmoid(sign * (ratios - kl)).sum(), count=len(ratios), metrics=metrics)


@pytest.mark.parametrize("reference", [True, False])
def test_a_good_feedback_loss(reference):
    check_feedback_loss(feedback, reference=reference)


def test_a_feedback_loss_that_averages_each_label():
    def averaged(*, desirable, **inputs):
        output = feedback(desirable=desirable, **inputs)
        return StepOutput(loss_sum=output.loss_sum / desirable.sum().clamp(min=1), count=output.count)

    with pytest.raises(AssertionError, match="is it a mean"):
        check_feedback_loss(averaged)


def test_a_feedback_loss_whose_figures_are_nan_without_a_label():
    def of_no_rows(*, desirable, **inputs):
        output = feedback(desirable=desirable, **inputs)
        output.metrics["rejected"] = Metric(total=inputs["completion"].detach()[~desirable].mean())
        return output

    with pytest.raises(AssertionError, match="metric 'rejected' of 2 items is nan"):
        check_feedback_loss(of_no_rows)


def reward(*, chosen, rejected):
    metrics = {"margin": Metric(total=(chosen - rejected).detach().sum(), weight=len(chosen))}
    return StepOutput(loss_sum=-functional.logsigmoid(chosen - rejected).sum(), count=len(chosen), metrics=metrics)


def test_a_good_reward_loss():
    check_reward_loss(reward)


def test_bad_reward_losses():
    def averaged(**scores):
        output = reward(**scores)
        return StepOutput(loss_sum=output.loss_sum / max(1, output.count), count=output.count)

    def swapped(*, chosen, rejected):
        return reward(chosen=rejected, rejected=chosen)

    for loss, says in ((averaged, "is it a mean"), (swapped, "draw chosen scores above rejected")):
        with pytest.raises(AssertionError, match=says):
            check_reward_loss(loss)
