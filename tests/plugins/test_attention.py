"""Padding-free attention: equal to padded, blind to neighbours, windows, caps and sinks honoured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bumblecore_core import ModelError
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_plugins.attention import bumble_attentions, flash_attention_unsupported
from bumblecore_plugins.attention.varlen import varlen_attention, varlen_mask
from tiny_models import FAMILIES, make_batch, make_model, register_attentions

LENGTHS = (9, 1, 5, 12)
TOKENS = sum(LENGTHS)
CAUSAL = SimpleNamespace(is_causal=True)


@pytest.fixture(autouse=True)
def registered():
    register_attentions()


def logits_and_gradients(model, forward):
    """(T, V) logits and every parameter's gradient of their cosine-weighted sum."""
    model.zero_grad()
    logits = forward(model)
    weights = torch.arange(logits.numel()).cos().view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed(batch):
    def forward(model):
        hidden, head = make_policy(model).project(batch=batch, positions=torch.arange(batch.tokens))
        return head.logits(hidden)

    return forward


def padded(batch):
    """A right-padded batch with a 2-D mask, as transformers' own training would run it."""

    def forward(model):
        documents = batch.input_ids[0].split(batch.document_lengths)
        ids = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor(batch.document_lengths)[:, None]
        return model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[mask]

    return forward


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["varlen", "sdpa", "eager"])
def test_padding_free_equals_padded(family, attention):
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("transformers' sdpa refuses soft caps")
    batch = make_batch(LENGTHS)
    reference = make_model(family, attention="eager" if family == "gemma2" else "sdpa")
    want, want_gradients = logits_and_gradients(reference, padded(batch))
    got, got_gradients = logits_and_gradients(make_model(family, attention=attention), packed(batch))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert got_gradients.keys() == want_gradients.keys()
    for name, gradient in want_gradients.items():
        torch.testing.assert_close(
            got_gradients[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item() + 1e-5
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_does_not_see_its_neighbours(family):
    batch, other = make_batch(LENGTHS), make_batch(LENGTHS)
    other.input_ids[:, : LENGTHS[0]] = make_batch(LENGTHS[:1], seed=1).input_ids
    model = make_model(family, attention="varlen")
    with torch.no_grad():
        before, after = (packed(each)(model) for each in (batch, other))
    assert not torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(family, reentrant):
    batch = make_batch(LENGTHS)
    model = make_model(family, attention="varlen").train()
    want, want_gradients = logits_and_gradients(model, packed(batch))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    got, got_gradients = logits_and_gradients(model, packed(batch))
    torch.testing.assert_close(got, want)
    for name, gradient in want_gradients.items():
        torch.testing.assert_close(got_gradients[name], gradient)


def naive(query, key, value, lengths, *, scaling, window=None, softcap=None, sinks=None):
    """One score at a time: (A, T, D) by loops over heads and tokens, in float64."""
    heads, tokens, _ = query.shape
    groups = heads // key.shape[0]
    start_of = [sum(lengths[:document]) for document, length in enumerate(lengths) for _ in range(length)]
    out = torch.zeros(heads, tokens, value.shape[2], dtype=torch.float64)
    for head in range(heads):
        for token in range(tokens):
            first = start_of[token] if window is None else max(start_of[token], token - window + 1)
            scores = (key[head // groups, first : token + 1].double() @ query[head, token].double()) * scaling
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            if sinks is not None:
                scores = torch.cat([scores, sinks[head : head + 1].double()])
            weights = torch.softmax(scores, 0)[: token + 1 - first]
            out[head, token] = weights @ value[head // groups, first : token + 1].double()
    return out


def states(*, heads=4, key_heads=2, tokens=TOKENS, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, tokens, width), (1, key_heads, tokens, width), (1, key_heads, tokens, width))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("extra", [{}, {"softcap": 1.5}, {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])}])
def test_against_loops(key_heads, window, extra):
    query, key, value = states(key_heads=key_heads)
    got, weights = varlen_attention(
        CAUSAL, query, key, value, None, scaling=0.3, sliding_window=window, document_lengths=LENGTHS, **extra
    )
    assert weights is None
    softcap, sinks = extra.get("softcap"), extra.get("s_aux")
    want = naive(query[0], key[0], value[0], LENGTHS, scaling=0.3, window=window, softcap=softcap, sinks=sinks)
    torch.testing.assert_close(got[0].transpose(0, 1).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", [{}, {"softcap": 1.5}, {"sliding_window": 3}])
def test_a_shared_prefix_is_the_beginning_of_the_document_before(extra):
    """Against loops over documents in which the prefix is repeated: 6 tokens before the second, 2 before the fourth."""
    query, key, value = states(tokens=21)
    layout = {"document_lengths": (9, 4, 5, 3), "shared_prefixes": (0, 6, 0, 2)}
    got, _ = varlen_attention(CAUSAL, query, key, value, None, scaling=0.3, **layout, **extra)
    repeated = [*range(9), *range(6), *range(9, 13), *range(13, 18), *range(13, 15), *range(18, 21)]
    own = [*range(9), *range(15, 24), *range(26, 29)]
    parts = (part[0][:, repeated] for part in (query, key, value))
    window, softcap = extra.get("sliding_window"), extra.get("softcap")
    want = naive(*parts, (9, 10, 5, 5), scaling=0.3, window=window, softcap=softcap)[:, own]
    torch.testing.assert_close(got[0].transpose(0, 1).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("widened_length", [0, 512])
def test_half_precision(monkeypatch, widened_length):
    """Outputs and gradients in bf16, with and without the detour over float32, against float64 on the same numbers."""
    monkeypatch.setattr("bumblecore_plugins.attention.varlen.CPU_WIDENED_LENGTH", widened_length)
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [part.to(dtype).requires_grad_() for part in states(dtype=torch.bfloat16)]
        out, _ = varlen_attention(CAUSAL, *leaves, None, document_lengths=LENGTHS)
        assert out.dtype == dtype
        weights = torch.arange(out.numel()).cos().view_as(out).to(dtype)
        results.append((out, *torch.autograd.grad((out * weights).sum(), leaves)))
    for ours, true in zip(*results, strict=True):
        assert (ours.double() - true).norm() <= 8e-3 * true.norm()


@pytest.mark.parametrize("extra", [{}, {"softcap": 1.5}])
def test_dropout_is_applied_per_document(extra):
    torch.manual_seed(0)
    query, key, value = states()
    keeps, drops = (
        varlen_attention(CAUSAL, query, key, value, None, dropout=rate, document_lengths=LENGTHS, **extra)[0]
        for rate in (0.0, 0.5)
    )
    assert not torch.allclose(keeps, drops)
    # A document of one token attends to itself alone: dropout keeps it doubled or zeroes it, head by head.
    ratio = (drops[0, LENGTHS[0]] / keeps[0, LENGTHS[0]]).unique()
    assert all(min(abs(each - 0), abs(each - 2)) < 1e-5 for each in ratio.tolist())


@pytest.mark.parametrize("window", [None, 3])
def test_decoding_with_a_cache_sees_all_that_came_before(window):
    query, key, value = states(tokens=10)
    whole, _ = varlen_attention(CAUSAL, query, key, value, None, sliding_window=window)
    for new in (1, 4):
        part, _ = varlen_attention(CAUSAL, query[:, :, -new:], key, value, None, sliding_window=window)
        torch.testing.assert_close(part, whole[:, -new:])


def test_generation_without_padding_equals_sdpa():
    ids = make_batch((6,)).input_ids
    texts = [make_model("mistral", attention=name).generate(ids, max_new_tokens=8) for name in ("sdpa", "varlen")]
    assert torch.equal(*texts)


def test_a_padded_batch_is_refused_and_an_unpadded_one_is_not():
    model = make_model("qwen3", attention="varlen")
    ids = make_batch((6,)).input_ids
    mask = torch.ones_like(ids)
    model(input_ids=ids, attention_mask=mask)
    mask[0, -1] = 0
    with pytest.raises(ModelError, match=r"^BC065.*padded"):
        model(input_ids=ids, attention_mask=mask)


def test_what_it_would_have_to_ignore_is_refused():
    query, key, value = states()
    with pytest.raises(ModelError, match="a mask"):
        varlen_attention(CAUSAL, query, key, value, torch.zeros(1, 1, 27, 27))
    with pytest.raises(ModelError, match="a position bias"):
        varlen_attention(CAUSAL, query, key, value, None, position_bias=torch.zeros(1, 4, 27, 27))
    with pytest.raises(ModelError, match="documents hold 5 tokens"):
        varlen_attention(CAUSAL, query, key, value, None, document_lengths=(2, 3))
    shape = {"batch_size": 1, "q_length": 8, "kv_length": 8}
    assert varlen_mask(**shape) is None
    assert varlen_mask(**shape, config=SimpleNamespace(attention_chunk_size=8)) is None
    with pytest.raises(ModelError, match="longer than the chunks"):
        varlen_mask(**shape, config=SimpleNamespace(attention_chunk_size=4))
    with pytest.raises(ModelError, match="causal mask"):
        varlen_mask(**shape, use_vmap=True)


def test_records():
    records = {record.name: record for record in bumble_attentions()}
    order = sorted(records, key=lambda name: -records[name].priority)
    assert order == ["flash_attention_2", "varlen", "sdpa", "eager"]
    assert records["flash_attention_2"].load().forward is None
    for name in ("varlen", "sdpa", "eager"):
        assert records[name].unsupported(device=torch.device("cpu"), dtype=torch.float32) is None


def test_flash_attention_says_why_not(monkeypatch):
    cuda, cpu = torch.device("cuda:0"), torch.device("cpu")
    assert "CUDA device, and this is cpu" in flash_attention_unsupported(device=cpu, dtype=torch.bfloat16)
    assert "float32" in flash_attention_unsupported(device=cuda, dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "7.5" in flash_attention_unsupported(device=cuda, dtype=torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "not installed" in flash_attention_unsupported(device=cuda, dtype=torch.bfloat16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert flash_attention_unsupported(device=cuda, dtype=torch.bfloat16) is None
