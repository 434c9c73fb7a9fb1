"""Token losses with weights: the fused one, the naive one and a loop over tokens agree."""

from __future__ import annotations

import math

import pytest
import torch
from test_losses import TOKENS, inputs

from bumblecore_core.testing import check_token_loss
from bumblecore_core.toolkit.policy import Head
from bumblecore_core.toolkit.token_weights import accepts_weights
from bumblecore_plugins.losses.fused import FusedCausalLm
from bumblecore_plugins.losses.naive import NaiveCausalLm

OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"label_smoothing": 0.3, "z_loss": 1e-1}]


def weights_for(tokens=TOKENS, *, seed=3):
    """Ragged factors: 1 %, ordinary ones, and large ones."""
    generator = torch.Generator().manual_seed(seed)
    weights = 0.1 + 2 * torch.rand(tokens, generator=generator)
    weights[::4] = 0.01
    weights[1::7] = 30.0
    return weights


def run(loss, leaves, targets, weights, *, scale=1.0, soft_cap=None, factor=1.0):
    """The step output and the gradients of loss × factor."""
    hidden, weight, bias = leaves
    head = Head(weight=weight, bias=bias, scale=scale, soft_cap=soft_cap)
    out = loss(hidden=hidden, head=head, targets=targets, weights=weights)
    return out, torch.autograd.grad(out.loss_sum * factor, [leaf for leaf in leaves if leaf is not None])


def by_hand(logits, targets, weights, label_smoothing=0.0, z_loss=0.0):
    """(loss, nll, z) sums over tokens, one after the other, in Python floats."""
    sums = [0.0, 0.0, 0.0]
    for row, target, weight in zip(logits.tolist(), targets.tolist(), weights.double().tolist(), strict=True):
        peak = max(row)
        lse = peak + math.log(math.fsum(math.exp(value - peak) for value in row))
        nll, even = lse - row[target], lse - math.fsum(row) / len(row)
        terms = ((1 - label_smoothing) * nll + label_smoothing * even + z_loss * lse**2, nll, z_loss * lse**2)
        sums = [total + weight * term for total, term in zip(sums, terms, strict=True)]
    return sums


@pytest.mark.parametrize("make", [FusedCausalLm, NaiveCausalLm])
@pytest.mark.parametrize("options", OPTIONS)
def test_both_losses_equal_a_loop_over_tokens_in_float64(make, options):
    leaves, targets = inputs(torch.float64)
    weights = weights_for()
    out, _ = run(make(**options), leaves, targets, weights, scale=1.7, soft_cap=2.0)
    logits = 2.0 * torch.tanh(1.7 * (leaves[0] @ leaves[1].T + leaves[2]) / 2.0)
    total, nll, z = by_hand(logits.detach(), targets, weights, **options)
    assert out.loss_sum.item() == pytest.approx(total, rel=1e-12)
    assert float(out.count) == pytest.approx(math.fsum(weights.double().tolist()), rel=1e-14)
    expected = {name: value for name, value in (("nll", nll if options else 0), ("z_loss", z)) if value}
    assert {name: float(metric.total) for name, metric in out.metrics.items()} == pytest.approx(expected, rel=1e-12)
    assert {float(metric.weight) for metric in out.metrics.values()} <= {float(out.count)}


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "soft_cap"), [(1.0, None), (0.25, None), (1.7, 2.0)])
@pytest.mark.parametrize("options", OPTIONS)
def test_fused_equals_naive(dtype, rtol, chunk_tokens, bias, scale, soft_cap, options):
    leaves, targets = inputs(dtype, bias=bias)
    weights = weights_for()
    head = {"scale": scale, "soft_cap": soft_cap, "factor": 1.5}
    want, want_grads = run(NaiveCausalLm(**options), leaves, targets, weights, **head)
    got, got_grads = run(FusedCausalLm(**options, chunk_tokens=chunk_tokens), leaves, targets, weights, **head)
    torch.testing.assert_close(got.loss_sum, want.loss_sum, rtol=rtol, atol=0)
    assert float(got.count) == float(want.count) == float(weights.double().sum())
    assert got.metrics.keys() == want.metrics.keys()
    for name, metric in want.metrics.items():
        torch.testing.assert_close(got.metrics[name].total, metric.total, rtol=rtol, atol=0)
        assert float(got.metrics[name].weight) == float(metric.weight) == float(want.count)
    for ours, theirs in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=10 * rtol, atol=30 * rtol)


@pytest.mark.parametrize("options", OPTIONS)
def test_float16_is_recomputed_with_weights(options):
    leaves, targets = inputs(torch.float16, bias=False)
    weights, factor = weights_for(), 2.0**4
    want, want_grads = run(NaiveCausalLm(**options), leaves, targets, weights, factor=factor)
    got, got_grads = run(FusedCausalLm(**options, chunk_tokens=7), leaves, targets, weights, factor=factor)
    torch.testing.assert_close(got.loss_sum, want.loss_sum, rtol=1e-6, atol=0)
    assert float(got.count) == float(weights.double().sum())
    for name, metric in want.metrics.items():
        torch.testing.assert_close(got.metrics[name].total, metric.total, rtol=1e-5, atol=0)
    for ours, theirs in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=factor * 0.1)


def test_bf16_gradients_are_rounded_once():
    leaves, targets = inputs(torch.bfloat16, bias=False)
    weights = weights_for()
    truth_leaves = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]
    truth, truth_grads = run(NaiveCausalLm(), truth_leaves, targets, weights)
    naive, naive_grads = run(NaiveCausalLm(), leaves, targets, weights)
    fused, fused_grads = run(FusedCausalLm(), leaves, targets, weights)
    error = abs(naive.loss_sum.item() - truth.loss_sum.item())
    assert abs(fused.loss_sum.item() - truth.loss_sum.item()) <= max(1.1 * error, 1e-4 * truth.loss_sum.item())
    for ours, theirs, true in zip(fused_grads, naive_grads, truth_grads, strict=True):
        assert (ours.double() - true).norm() <= 1.02 * (theirs.double() - true).norm()


@pytest.mark.parametrize("make", [FusedCausalLm, NaiveCausalLm])
def test_logits_of_the_models_own_and_an_evaluation(make):
    leaves, targets = inputs(bias=False)
    weights = weights_for()
    want, _ = run(NaiveCausalLm(label_smoothing=0.2), leaves, targets, weights)
    with torch.no_grad():
        loss = make(label_smoothing=0.2)
        evaluated = loss(hidden=leaves[0], head=Head(weight=leaves[1]), targets=targets, weights=weights)
        logits = leaves[0] @ leaves[1].T
        own = loss(hidden=logits, head=Head(weight=None), targets=targets, weights=weights)
    for out in (evaluated, own):
        assert not out.loss_sum.requires_grad
        assert not out.count.requires_grad
        torch.testing.assert_close(out.loss_sum, want.loss_sum.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(out.metrics["nll"].total, want.metrics["nll"].total, rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [FusedCausalLm, NaiveCausalLm])
def test_a_weight_that_is_a_leaf_leaves_the_gradients_as_they_are(make):
    """The search for a non-finite gradient makes every input of a loss a leaf."""
    leaves, targets = inputs()
    _, want = run(make(), leaves, targets, weights_for())
    out, got = run(make(), leaves, targets, weights_for().requires_grad_())
    assert not out.count.requires_grad
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operations that run, with the shapes of what they give."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen.append((str(function), tuple(out.shape) if isinstance(out, torch.Tensor) else None))
        return out


@pytest.mark.parametrize("make", [FusedCausalLm, NaiveCausalLm])
def test_without_weights_nothing_is_computed_for_them(make):
    leaves, targets = inputs()
    found = []
    for weights in (None, weights_for()):
        loss = make(label_smoothing=0.1, z_loss=0.1)
        with Operations() as operations:
            out, _ = run(loss, leaves, targets, weights)
        found.append(operations.seen)
        assert isinstance(out.count, int) == (weights is None)
    plain, weighted = found
    assert not [name for name, shape in plain if "ones" in name and shape == (TOKENS,)]
    count = sum("aten.mul" in name for name, _ in weighted) - sum("aten.mul" in name for name, _ in plain)
    assert count >= 2  # of the losses and of their gradients


@pytest.mark.parametrize("make", [FusedCausalLm, NaiveCausalLm])
@pytest.mark.parametrize("options", OPTIONS)
def test_both_losses_pass_the_conformance_kit_with_weights(make, options):
    assert accepts_weights(make(**options))
    check_token_loss(make(**options))
