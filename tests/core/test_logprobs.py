"""Fused log-probabilities equal the naive ones: values and every gradient, for any gradient that comes back."""

import math

import pytest
import torch

from bumblecore_core.toolkit.head_chunks import Workspace
from bumblecore_core.toolkit.logprobs import TokenLogprobs, naive_logprobs
from bumblecore_core.toolkit.policy import Head

TOKENS, WIDTH, VOCABULARY = 23, 12, 57


def inputs(dtype=torch.float32, *, bias=True, tokens=TOKENS):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    offset = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64) if bias else None
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    coming = torch.randn(tokens, generator=generator, dtype=torch.float64)
    leaves = [None if leaf is None else leaf.to(dtype).requires_grad_() for leaf in (hidden, weight, offset)]
    return leaves, targets, coming


def run(compute, leaves, targets, coming, *, scale=1.0, soft_cap=None):
    hidden, weight, bias = leaves
    found = compute(hidden=hidden, head=Head(weight=weight, bias=bias, scale=scale, soft_cap=soft_cap), targets=targets)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    return found.detach(), torch.autograd.grad(found, wanted, coming.to(found.dtype))


def fused(chunk_tokens):
    return TokenLogprobs(Workspace(chunk_tokens=chunk_tokens))


@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, 23, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "soft_cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (1.7, 2.0)])
@pytest.mark.parametrize("frozen", [(), (1, 2), (0,)], ids=["all trained", "head frozen", "hidden frozen"])
def test_fused_equals_naive(chunk_tokens, bias, scale, soft_cap, frozen):
    leaves, targets, coming = inputs(bias=bias)
    for at in frozen:
        if leaves[at] is not None:
            leaves[at].requires_grad_(False)
    want, want_grads = run(naive_logprobs, leaves, targets, coming, scale=scale, soft_cap=soft_cap)
    got, got_grads = run(fused(chunk_tokens), leaves, targets, coming, scale=scale, soft_cap=soft_cap)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert len(got_grads) == len(want_grads) > 0
    for ours, theirs in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_by_finite_differences(frozen):
    leaves, targets, _ = inputs(torch.float64, tokens=4)
    hidden, weight, bias = leaves
    weight.requires_grad_(not frozen)
    bias.requires_grad_(not frozen)

    def compute(hidden, weight, bias):
        head = Head(weight=weight, bias=bias, scale=0.8, soft_cap=4.0)
        return TokenLogprobs()(hidden=hidden, head=head, targets=targets)

    assert torch.autograd.gradcheck(compute, (hidden, weight, bias))


@pytest.mark.parametrize("chunk_tokens", [None, 6])
def test_bf16_is_as_close_to_the_truth_as_the_naive_way(chunk_tokens):
    truth, true_grads = run(naive_logprobs, *inputs(torch.float64))
    naive, naive_grads = run(naive_logprobs, *inputs(torch.bfloat16))
    got, got_grads = run(fused(chunk_tokens), *inputs(torch.bfloat16))
    assert (got - truth).abs().max() <= 1.5 * (naive - truth).abs().max()
    for ours, theirs, true in zip(got_grads, naive_grads, true_grads, strict=True):
        assert (ours - true).abs().max() <= 1.5 * (theirs - true).abs().max()


@pytest.mark.parametrize("frozen", [False, True])
def test_in_float16_the_loss_scale_comes_before_the_logits_gradient(frozen):
    """A probability of 1.5e-8 is 0 in float16; times a loss scale of 2^16 it is not."""
    hidden = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[0.0], [-18.0]], dtype=torch.float16, requires_grad=not frozen)
    scale = torch.full((1,), 2.0**16)
    found, (gradient, *_) = run(TokenLogprobs(), [hidden, weight, None], torch.tensor([0]), scale)
    assert found.dtype == torch.float32
    assert gradient.item() == pytest.approx(18 * 2.0**16 / (1 + math.exp(18)), rel=1e-3)


def test_logits_without_a_head_and_no_positions():
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets = torch.arange(5)
    found = TokenLogprobs()(hidden=logits, head=Head(weight=None), targets=targets)
    torch.testing.assert_close(found, torch.log_softmax(logits, 1)[targets, targets])
    leaves, none, _ = inputs(tokens=0)
    empty, gradients = run(TokenLogprobs(), leaves, none, torch.zeros(0))
    assert empty.shape == (0,)
    assert all(not gradient.any() for gradient in gradients)


def test_without_gradients_nothing_is_kept():
    leaves, targets, _ = inputs()
    with torch.no_grad():
        found = TokenLogprobs()(hidden=leaves[0], head=Head(weight=leaves[1], bias=leaves[2]), targets=targets)
    assert not found.requires_grad
