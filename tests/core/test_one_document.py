"""One document per forward pass equals each document in a model of its own: values, gradients, any order of lengths."""

from __future__ import annotations

import copy

import numpy as np
import peft
import pytest
import torch
import transformers
from torch.nn import functional

from bumblecore_core import ModelError
from bumblecore_core.toolkit.head import Head
from bumblecore_core.toolkit.packing import pack
from bumblecore_core.toolkit.passes import ForwardPasses
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_core.toolkit.rope_state import find_dynamic_ropes
from bumblecore_plugins.attention.varlen import varlen_attention, varlen_mask
from reward_models import make_scorer
from tiny_models import LONG_ROPES, RECURRENT, SPECIAL_TOKENS, make_batch, make_model, register_attentions, supervised

LAYOUTS = ((5, 19, 7, 12, 1), (13, 2, 21))
"""Shorter documents after longer ones, below and beyond the limit of 8 tokens, and one of a single token."""


@pytest.fixture(autouse=True)
def registered():
    register_attentions()


def alone_families():
    return [*RECURRENT, *LONG_ROPES]


def model_of(family, attention="eager", **changes):
    model = make_model(family, attention=attention, **changes).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.div_(3)
    return model


def policy_loss(policy, batch):
    places = supervised(batch)
    hidden, head = policy.project(batch=batch, positions=places)
    return functional.cross_entropy(head.logits(hidden).float(), batch.input_ids[0, places + 1], reduction="sum")


def naive_loss(model, batches):
    """(loss, gradients): each document by a copy of the model that has computed nothing before."""
    total, gradients = 0.0, {}
    for ids in (ids for batch in batches for ids in batch.input_ids[0].split(batch.document_lengths)):
        fresh = copy.deepcopy(model)
        logits = fresh(input_ids=ids[None], use_cache=False).logits[0]
        loss = functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="sum")
        loss.backward()
        total += float(loss.detach())
        for name, parameter in fresh.named_parameters():
            if parameter.grad is not None:
                gradients[name] = gradients.get(name, 0) + parameter.grad
    return total, gradients


def assert_equal_to_naive(model, policy):
    fresh, batches = copy.deepcopy(model), [make_batch(lengths, seed=at) for at, lengths in enumerate(LAYOUTS)]
    losses = [policy_loss(policy, batch) for batch in batches]
    for loss in losses:  # gradients add up, and one backward pass follows another forward pass
        loss.backward()
    expected, gradients = naive_loss(fresh, batches)
    assert float(sum(losses).detach()) == pytest.approx(expected, rel=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5 * scale + 1e-7, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", alone_families())
def test_losses_and_gradients_are_those_of_documents_alone(family, checkpointing):
    model = model_of(family)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = make_policy(model, one_document=family in LONG_ROPES)
    assert policy.one_document
    assert_equal_to_naive(model, policy)


@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_models_that_keep_documents_apart_give_the_same_in_separate_passes(family, attention):
    model = model_of(family, attention)
    assert_equal_to_naive(model, make_policy(model, one_document=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_counts_positions_in_its_own_way_does_so(attention):
    """RoBERTa begins to count behind the id of its padding token."""
    config = transformers.RobertaConfig(
        **{**SPECIAL_TOKENS, "pad_token_id": 1, "bos_token_id": 0},
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    with torch.no_grad():
        model.roberta.embeddings.position_embeddings.weight.mul_(50)
    policy = make_policy(model)
    assert policy.one_document
    assert policy.leak == "the model counts positions in a way of its own"
    assert_equal_to_naive(model, policy)


@pytest.mark.parametrize("family", RECURRENT)
def test_models_that_mix_documents_fall_back_by_themselves(family):
    policy = make_policy(model_of(family))
    assert policy.one_document
    assert policy.leak is not None
    mixed = "a document's hidden states change with the document before it"
    assert policy.leak == mixed or "can't keep packed sequences apart" in policy.leak


def test_the_models_own_logits_come_in_the_order_of_the_positions():
    model = model_of("mamba")
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).eval()
    batch, positions = make_batch((4, 9, 3)), torch.tensor([14, 2, 5, 5, 0])
    policy = make_policy(model)
    logits, head = policy.project(batch=batch, positions=positions)
    assert head == Head(weight=None)
    alone = [model(input_ids=ids[None], use_cache=False).logits[0] for ids in batch.input_ids[0].split((4, 9, 3))]
    torch.testing.assert_close(logits, torch.cat(alone)[positions], rtol=1e-5, atol=1e-5)


def test_shared_prefixes_are_repeated():
    model = model_of("mamba").eval()
    first, second = np.arange(3, 10), np.arange(20, 24)
    batch = pack([first, second], rows=(0, 1), count=0, shared_prefixes=(0, 3))
    policy = make_policy(model, share_prefixes=True)
    assert dict(policy.features)["shared prefixes"].startswith("repeated: each document")
    hidden, head = policy.project(batch=batch, positions=torch.tensor([2, 6, 7, 10]))
    alone = [torch.from_numpy(ids)[None] for ids in (first, np.concatenate([first[:3], second]))]
    one, other = (model(input_ids=ids, use_cache=False).logits[0] for ids in alone)
    want = torch.stack([one[2], one[6], other[3], other[6]])
    torch.testing.assert_close(head.logits(hidden), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("one_document", [False, True])
def test_scores_of_a_reward_model(one_document):
    model = make_scorer("llama", attention="varlen")
    batch = make_batch((5, 3, 8))
    scores = make_policy(model, one_document=one_document).scores(batch=batch, positions=torch.tensor([15, 4, 7]))
    alone = [model(input_ids=ids[None]).logits[0, 0] for ids in batch.input_ids[0].split(batch.document_lengths)]
    torch.testing.assert_close(scores, torch.stack([alone[2], alone[0], alone[1]]), rtol=1e-5, atol=1e-5)


def seen_inputs(model, policy, batch):
    seen = []
    handle = model.model.register_forward_pre_hook(lambda module, args, inputs: seen.append(inputs), with_kwargs=True)
    policy.project(batch=batch, positions=torch.tensor([0]))
    handle.remove()
    return seen


def test_what_the_model_is_passed():
    """No bounds of documents where there is one alone: some models take them for packed documents."""
    model = model_of("qwen3", "varlen")
    together, separate = make_policy(model), make_policy(model, one_document=True)
    (several,) = seen_inputs(model, together, make_batch((4, 3)))
    assert several["cu_seq_lens_q"].tolist() == [0, 4, 7]
    (single,) = seen_inputs(model, together, make_batch((4,)))
    assert not [name for name in single if "seq_lens" in name or "max_length" in name]
    first, second = seen_inputs(model, separate, make_batch((4, 3)))
    assert first.keys() == second.keys() == {"input_ids", "position_ids", "use_cache"}
    assert second["position_ids"].tolist() == [[0, 1, 2]]


def test_a_rope_that_grew_is_reset_before_each_batch():
    """Without several documents too: a batch must not depend on the batches before it."""
    model = model_of("dynamic").eval()
    policy = make_policy(model)
    (rope,) = find_dynamic_ropes(model)
    short = make_batch((6,))
    before = policy.hidden(short)
    policy.hidden(make_batch((20,)))
    assert rope.max_seq_len_cached == 20
    grown = policy.hidden(make_batch((12,), seed=3))
    assert torch.equal(policy.hidden(short), before)
    fresh = model_of("dynamic").eval()
    torch.testing.assert_close(grown, make_policy(fresh).hidden(make_batch((12,), seed=3)), rtol=0, atol=0)


def test_a_model_that_fails_on_several_documents_falls_back():
    model = model_of("qwen3", "varlen")

    def refuse(module, args, inputs):
        if len(inputs.get("document_lengths", ())) > 1:
            raise NotImplementedError("packed documents need a kernel that is not installed")

    model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    policy = make_policy(model)
    assert policy.leak == "the model fails on several documents: packed documents need a kernel that is not installed"
    policy.project(batch=make_batch((3, 4)), positions=torch.tensor([6]))


def test_a_model_that_sees_later_tokens_is_refused():
    def bidirectional(module, query, key, value, attention_mask, **kwargs):
        return varlen_attention(module, query, key, value, None, is_causal=False, scaling=kwargs["scaling"])

    import transformers

    transformers.AttentionInterface.register("bidirectional", bidirectional)
    transformers.AttentionMaskInterface.register("bidirectional", varlen_mask)
    with pytest.raises(ModelError, match=r"^BC065.*changes with the tokens after it.*qwen3.*bidirectional"):
        make_policy(make_model("qwen3", attention="bidirectional"))


@pytest.mark.parametrize("missing", [0, 2])
def test_dummy_passes_change_nothing(monkeypatch, missing):
    """Another rank with more documents: the results and gradients of this one stay, and all passes are in the graph."""
    model = model_of("lfm2")
    calls = []
    model.model.register_forward_hook(lambda *given: calls.append(None))
    policy = make_policy(model)
    monkeypatch.setattr(ForwardPasses, "_missing_passes", lambda self, batch: missing)
    calls.clear()
    assert_equal_to_naive(model, policy)
    assert len(calls) == sum(map(len, LAYOUTS)) + missing * len(LAYOUTS) + sum(map(len, LAYOUTS))
