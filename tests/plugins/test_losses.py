"""The fused loss equals the naive one: losses, metrics and every gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from bumblecore_core.toolkit.policy import Head
from bumblecore_plugins.losses import CausalLmOptions, build_fused, build_naive, bumble_losses
from bumblecore_plugins.losses.fused import FusedCausalLm
from bumblecore_plugins.losses.naive import NaiveCausalLm

TOKENS, WIDTH, VOCABULARY = 23, 12, 57


def inputs(dtype=torch.float32, *, tokens=TOKENS, bias=True, spread=0.7, seed=0):
    """Leaf tensors (hidden, weight, bias) and targets, alike for a seed in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64) * spread
    offset = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64) if bias else None
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    leaves = [None if leaf is None else leaf.to(dtype).requires_grad_() for leaf in (hidden, weight, offset)]
    return leaves, targets


def run(loss, leaves, targets, *, scale=1.0, soft_cap=None, factor=1.0):
    """The step output and the gradients of loss × factor."""
    hidden, weight, bias = leaves
    out = loss(hidden=hidden, head=Head(weight=weight, bias=bias, scale=scale, soft_cap=soft_cap), targets=targets)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    return out, torch.autograd.grad(out.loss_sum * factor, wanted)


@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, 23, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "soft_cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (1.7, 2.0)])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.3, 1e-1)])
def test_fused_equals_naive(chunk_tokens, bias, scale, soft_cap, smoothing, z_loss):
    leaves, targets = inputs(bias=bias)
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    want, want_grads = run(NaiveCausalLm(**options), leaves, targets, scale=scale, soft_cap=soft_cap, factor=1.5)
    fused = FusedCausalLm(**options, chunk_tokens=chunk_tokens)
    got, got_grads = run(fused, leaves, targets, scale=scale, soft_cap=soft_cap, factor=1.5)
    torch.testing.assert_close(got.loss_sum, want.loss_sum, rtol=1e-6, atol=0)
    assert got.count == want.count == TOKENS
    reported = {"nll": smoothing or z_loss, "z_loss": z_loss}
    assert set(got.metrics) == set(want.metrics) == {name for name, on in reported.items() if on}
    for name, metric in want.metrics.items():
        torch.testing.assert_close(got.metrics[name].total, metric.total, rtol=1e-6, atol=0)
        assert got.metrics[name].weight == metric.weight == TOKENS
    for ours, theirs in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("chunk_tokens", [None, 4])
def test_gradients_by_finite_differences(chunk_tokens):
    leaves, targets = inputs(torch.float64, tokens=7)
    fused = FusedCausalLm(label_smoothing=0.1, z_loss=0.05, chunk_tokens=chunk_tokens)

    def loss(hidden, weight, bias):
        return fused(
            hidden=hidden, head=Head(weight=weight, bias=bias, scale=1.3, soft_cap=4.0), targets=targets
        ).loss_sum

    out = loss(*leaves)
    assert out.dtype == torch.float64
    step = 1e-5
    for leaf, gradient in zip(leaves, torch.autograd.grad(out, leaves), strict=True):
        flat = leaf.detach().view(-1)
        for place in range(0, flat.numel(), 3):
            with torch.no_grad():
                before = flat[place].item()
                flat[place] = before + step
                above = loss(*leaves).item()
                flat[place] = before - step
                below = loss(*leaves).item()
                flat[place] = before
            assert gradient.view(-1)[place].item() == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(("chunk_tokens", "slack"), [(None, 1.02), (6, 1.4)])
def test_bf16_is_as_close_to_the_truth_as_the_naive_loss(chunk_tokens, slack):
    """Error against float64 on the same bf16 numbers. In one chunk every gradient is rounded once, as the naive one is;
    a sum over chunks rounds each chunk's product too (measured: up to 1.27 times the naive error)."""
    leaves, targets = inputs(torch.bfloat16, bias=False)
    truth_leaves = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]
    truth, truth_grads = run(NaiveCausalLm(), truth_leaves, targets)
    naive, naive_grads = run(NaiveCausalLm(), leaves, targets)
    fused, fused_grads = run(FusedCausalLm(chunk_tokens=chunk_tokens), leaves, targets)
    assert fused.loss_sum.dtype == torch.float32
    error = abs(fused.loss_sum.item() - truth.loss_sum.item()) / truth.loss_sum.item()
    assert error <= max(1.1 * abs(naive.loss_sum.item() - truth.loss_sum.item()) / truth.loss_sum.item(), 1e-4)
    for ours, theirs, true in zip(fused_grads, naive_grads, truth_grads, strict=True):
        assert (ours.double() - true).norm() <= slack * (theirs.double() - true).norm()
        assert (ours.double() - true).norm() <= 5e-3 * true.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_no_supervised_token(dtype, chunk_tokens):
    leaves, targets = inputs(dtype, tokens=0)
    out, grads = run(FusedCausalLm(chunk_tokens=chunk_tokens), [*leaves[:2], None], targets)
    assert out.loss_sum.item() == 0.0
    assert out.count == 0
    assert grads[0].shape == (0, WIDTH)
    assert not grads[1].any()


@pytest.mark.parametrize("frozen", list(itertools.product([True, False], repeat=2)))
def test_frozen_parts_get_no_gradient(frozen):
    leaves, targets = inputs(bias=False)
    for leaf, freeze in zip(leaves[:2], frozen, strict=True):
        leaf.requires_grad_(not freeze)
    out = FusedCausalLm(chunk_tokens=9)(hidden=leaves[0], head=Head(weight=leaves[1]), targets=targets)
    want = NaiveCausalLm()(hidden=leaves[0], head=Head(weight=leaves[1]), targets=targets)
    torch.testing.assert_close(out.loss_sum, want.loss_sum)
    assert out.loss_sum.requires_grad == (not all(frozen))
    if all(frozen):
        return
    out.loss_sum.backward()
    got = [leaf.grad for leaf in leaves[:2]]
    for leaf in leaves[:2]:
        leaf.grad = None
    want.loss_sum.backward()
    for ours, leaf, freeze in zip(got, leaves[:2], frozen, strict=True):
        assert (ours is None) == freeze
        if ours is not None:
            torch.testing.assert_close(ours, leaf.grad, rtol=1e-5, atol=1e-6)


def test_without_gradients_no_gradient_work_is_done(monkeypatch):
    leaves, targets = inputs()
    monkeypatch.setattr(
        "bumblecore_plugins.losses.fused.added_product", lambda *_: pytest.fail("a weight gradient was computed")
    )
    with torch.no_grad():
        out = FusedCausalLm(chunk_tokens=5)(hidden=leaves[0], head=Head(weight=leaves[1]), targets=targets)
    assert not out.loss_sum.requires_grad
    with torch.no_grad():
        want = NaiveCausalLm()(hidden=leaves[0], head=Head(weight=leaves[1]), targets=targets)
    torch.testing.assert_close(out.loss_sum, want.loss_sum)


def test_an_evaluation_between_forward_and_backward_changes_nothing():
    """Buffers are shared between calls; the gradients must not lie in them."""
    leaves, targets = inputs(bias=False)
    other, other_targets = inputs(bias=False, seed=1)
    fused = FusedCausalLm()
    _, want = run(fused, leaves, targets)
    out = fused(hidden=leaves[0], head=Head(weight=leaves[1]), targets=targets)
    run(fused, other, other_targets)
    got = torch.autograd.grad(out.loss_sum, leaves[:2])
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


def test_the_full_float32_logits_never_exist():
    """No tensor of N × V elements in a wider dtype is made: the block buffer is the largest, and it is bounded."""
    leaves, targets = inputs(torch.bfloat16, tokens=600)
    fused = FusedCausalLm(chunk_tokens=50)
    run(fused, [*leaves[:2], None], targets)
    sizes = {use: flat.numel() for (use, _), flat in fused._workspace.kept.items()}
    assert sizes["logits"] == 50 * VOCABULARY
    assert sizes["block"] <= 50 * VOCABULARY


def test_extreme_logits_stay_exact():
    """A target whose probability underflows float32 still has its loss."""
    weight = torch.tensor([[400.0], [0.0], [-300.0]]).requires_grad_()
    hidden = torch.ones(3, 1)
    out = FusedCausalLm()(hidden=hidden, head=Head(weight=weight), targets=torch.tensor([0, 1, 2]))
    assert out.loss_sum.item() == pytest.approx(0 + 400 + 700)
    out.loss_sum.backward()
    assert weight.grad.flatten().tolist() == [2.0, -1.0, -1.0]


@pytest.mark.parametrize("chunk_tokens", [7, 11])  # 11 leaves a last chunk of one token
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}], ids=str)
def test_float16_is_as_close_to_the_truth_as_the_naive_loss(options, chunk_tokens):
    factor = 2.0**8
    leaves, targets = inputs(torch.float16, bias=False)
    wide = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]
    _, true_grads = run(NaiveCausalLm(**options), wide, targets, factor=factor)
    want, want_grads = run(NaiveCausalLm(**options), leaves, targets, factor=factor)
    got, got_grads = run(FusedCausalLm(**options, chunk_tokens=chunk_tokens), leaves, targets, factor=factor)
    torch.testing.assert_close(got.loss_sum, want.loss_sum, rtol=1e-6, atol=0)
    assert got.metrics.keys() == want.metrics.keys() == ({"nll", "z_loss"} if options else set())
    for name in want.metrics:
        torch.testing.assert_close(got.metrics[name].total, want.metrics[name].total, rtol=1e-5, atol=0)
    for ours, theirs, true in zip(got_grads, want_grads, true_grads, strict=True):
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm() < 1e-3 * true.norm()


def test_in_float16_the_loss_scale_comes_before_the_logits_gradient():
    """A probability of 1.5e-8 is 0 in float16; times a loss scale of 2^16 it is not."""
    hidden = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[0.0], [-18.0]], dtype=torch.float16, requires_grad=True)
    _, gradients = run(FusedCausalLm(), [hidden, weight, None], torch.tensor([0]), factor=2.0**16)
    expected = 2.0**16 / (1 + math.exp(18))
    assert [float(gradient.flatten()[-1]) for gradient in gradients] == pytest.approx(
        [-18 * expected, expected], rel=1e-3
    )


@pytest.mark.parametrize("of_head", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("of_hidden", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_hidden_states_compute_in_the_dtype_of_the_head(of_hidden, of_head):
    (hidden, _, _), targets = inputs(of_hidden)
    (_, weight, bias), _ = inputs(of_head)
    cast = hidden.detach().to(of_head).requires_grad_()
    out, gradients = run(FusedCausalLm(chunk_tokens=9), [hidden, weight, bias], targets)
    want, expected = run(FusedCausalLm(chunk_tokens=9), [cast, weight, bias], targets)
    assert torch.equal(out.loss_sum, want.loss_sum)
    assert gradients[0].dtype == of_hidden
    assert gradients[0].any()
    assert torch.equal(gradients[0], expected[0].to(of_hidden))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients[1:], expected[1:], strict=True))


def test_logits_of_the_models_own_go_through_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(TOKENS, VOCABULARY, generator=generator, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    got = FusedCausalLm(label_smoothing=0.2)(hidden=logits, head=Head(weight=None), targets=targets)
    want = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(got.loss_sum, want)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (got.loss_sum, want)))


def test_a_second_backward_is_refused():
    leaves, targets = inputs()
    out = FusedCausalLm()(hidden=leaves[0], head=Head(weight=leaves[1]), targets=targets)
    out.loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        out.loss_sum.backward()


def test_records_build_what_they_name():
    names = {record.name for record in bumble_losses() if record.loss_kind == "token"}
    assert names == {"causal_lm", "causal_lm_naive"}
    options = CausalLmOptions(label_smoothing=0.1, z_loss=1e-4)
    for build, kind in ((build_fused, FusedCausalLm), (build_naive, NaiveCausalLm)):
        loss = build(options=options)
        assert type(loss) is kind
        assert (loss.label_smoothing, loss.z_loss) == (0.1, 1e-4)


@pytest.mark.parametrize(
    "wrong", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}, {"zloss": 0.1}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        CausalLmOptions(**wrong)
