"""Fused heads whose chunks, blocks of rows and blocks of the vocabulary are all several: equal to the naive ones.

A real vocabulary leaves a block of some dozen rows; those of these tests fit into one unless the budgets are patched.
"""

import pytest
import torch

from bumblecore_core.toolkit import head_chunks
from bumblecore_core.toolkit.head_chunks import Workspace
from bumblecore_core.toolkit.logprobs import TokenLogprobs, naive_logprobs
from bumblecore_core.toolkit.policy import Head
from bumblecore_plugins.losses.fused import FusedCausalLm
from bumblecore_plugins.losses.naive import NaiveCausalLm

TOKENS, WIDTH, VOCABULARY = 29, 12, 57
ROWS_AT_ONCE, VOCABULARY_AT_ONCE = 3, 10


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a block has a row for each thread at least
    monkeypatch.setattr(head_chunks, "CPU_BLOCK_BYTES", ROWS_AT_ONCE * VOCABULARY * 4)
    monkeypatch.setattr(head_chunks, "PRODUCT_BYTES", {"cpu": VOCABULARY_AT_ONCE * WIDTH * 2, "cuda": 1})
    yield
    torch.set_num_threads(threads)


def drawn(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64) * 0.7
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    coming = torch.rand(TOKENS, generator=generator, dtype=torch.float64) + 0.5
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return [leaf.to(dtype).requires_grad_() for leaf in (hidden, weight, bias)], targets, coming


def loss_sums(loss, leaves, targets, coming):
    hidden, weight, bias = leaves
    return loss(hidden=hidden, head=Head(weight=weight, bias=bias, scale=1.3, soft_cap=4.0), targets=targets).loss_sum


def weighted_logprobs(compute, leaves, targets, coming):
    hidden, weight, bias = leaves
    found = compute(hidden=hidden, head=Head(weight=weight, bias=bias, scale=1.3, soft_cap=4.0), targets=targets)
    return (found * coming.to(found.dtype)).sum()


def fused_loss(chunk_tokens):
    return FusedCausalLm(label_smoothing=0.1, z_loss=0.01, chunk_tokens=chunk_tokens)


def fused_logprobs(chunk_tokens):
    return TokenLogprobs(Workspace(chunk_tokens=chunk_tokens))


KINDS = {
    "loss": (loss_sums, fused_loss, NaiveCausalLm(label_smoothing=0.1, z_loss=0.01)),
    "log-probabilities": (weighted_logprobs, fused_logprobs, naive_logprobs),
}


def test_these_budgets_make_several_blocks():
    blocks = list(head_chunks.row_blocks(torch.zeros(10, VOCABULARY), torch.float32))
    assert blocks == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(40, [40]), (41, [21, 20]), (100, [34, 34, 32]), (0, [])], ids=lambda value: str(value)
)
def test_chunks_are_of_equal_size_within_the_budget(monkeypatch, tokens, sizes):
    monkeypatch.setattr(head_chunks, "CHUNK_BYTES", {"cpu": 40 * VOCABULARY * 4 + 3, "cuda": 1})
    hidden, weight = torch.zeros(tokens, WIDTH), torch.zeros(VOCABULARY, WIDTH)
    chunks = [(kept, len(logits)) for kept, logits in head_chunks.logit_chunks(hidden, weight, None, Workspace())]
    assert [rows for _, rows in chunks] == sizes
    assert [at for kept, _ in chunks for at in range(kept.start, kept.stop)] == list(range(tokens))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_tokens", [None, 11])
@pytest.mark.parametrize("frozen", [(), (1, 2), (0,)], ids=["all trained", "head frozen", "hidden frozen"])
def test_blocks_and_chunks_change_nothing(kind, chunk_tokens, frozen):
    total, fused, naive = KINDS[kind]
    leaves, targets, coming = drawn()
    for at in frozen:
        leaves[at].requires_grad_(False)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    want, got = (total(compute, leaves, targets, coming) * 1.5 for compute in (naive, fused(chunk_tokens)))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    pairs = zip(torch.autograd.grad(got, wanted), torch.autograd.grad(want, wanted), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_tokens", [None, 11])
def test_a_bf16_weights_float32_gradient_is_a_sum_in_float32(kind, chunk_tokens):
    """Two micro-batches: nearer to the truth than a sum in bf16, and with digits that only float32 has."""
    total, fused, naive = KINDS[kind]
    truth = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
    rounded = torch.zeros(VOCABULARY, WIDTH, dtype=torch.bfloat16)
    _, weight, _ = drawn(0, torch.bfloat16)[0]
    ours = torch.nn.Parameter(weight.detach().clone())
    ours.grad_dtype = torch.float32
    compute = fused(chunk_tokens)
    for seed in (1, 2):
        (hidden, _, bias), targets, coming = drawn(seed, torch.bfloat16)
        total(compute, (hidden.detach(), ours, bias.detach()), targets, coming).backward()
        wide = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
        truth += torch.autograd.grad(total(naive, wide, targets, coming), wide[1])[0]
        rounded += torch.autograd.grad(total(naive, (hidden, weight, bias), targets, coming), weight)[0]
    assert ours.grad.dtype == torch.float32
    assert (ours.grad - truth).norm() < 0.8 * (rounded - truth).norm() < 0.01 * truth.norm()
    assert not torch.equal(ours.grad.bfloat16().float(), ours.grad)


def test_buffers_grow_with_what_is_asked_of_them():
    fused = FusedCausalLm(chunk_tokens=11)
    for tokens in (4, TOKENS, 9):
        (hidden, weight, bias), targets, coming = drawn()
        leaves = hidden[:tokens].detach().requires_grad_(), weight, bias
        want, got = (loss_sums(loss, leaves, targets[:tokens], coming) for loss in (NaiveCausalLm(), fused))
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
