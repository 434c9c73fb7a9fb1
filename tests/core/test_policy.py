"""The policy: the head read as data and verified, fallbacks that are reported."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers

from bumblecore_core.toolkit.packing import pack
from bumblecore_core.toolkit.policy import Head, make_policy
from bumblecore_plugins.attention.varlen import varlen_attention, varlen_mask
from bumblecore_plugins.losses.fused import FusedCausalLm
from bumblecore_plugins.losses.naive import NaiveCausalLm
from reward_models import make_scorer
from tiny_models import FAMILIES, make_batch, make_model

LENGTHS = (7, 4, 10)
POSITIONS = torch.tensor([0, 3, 6, 7, 12, 20])


@pytest.fixture(autouse=True)
def registered():
    transformers.AttentionInterface.register("varlen", varlen_attention)
    transformers.AttentionMaskInterface.register("varlen", varlen_mask)


def own_logits(model, batch):
    """(N, V) at POSITIONS: the model's own logits of each document alone."""
    documents = batch.input_ids[0].split(batch.document_lengths)
    logits = [model(input_ids=ids[None], use_cache=False).logits[0] for ids in documents]
    return torch.cat(logits)[POSITIONS]


def decided(policy):
    return dict(policy.features)["head"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_as_data_gives_the_models_own_logits(family):
    model = make_model(family, attention="varlen")
    batch = make_batch(LENGTHS)
    policy = make_policy(model)
    assert decided(policy).startswith("on supervised positions only")
    hidden, head = policy.project(batch=batch, positions=POSITIONS)
    assert hidden.shape == (len(POSITIONS), 32)
    assert head.weight is model.get_output_embeddings().weight
    torch.testing.assert_close(head.logits(hidden), own_logits(model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_tolerated(family, dtype):
    policy = make_policy(make_model(family, attention="varlen", dtype=dtype))
    assert decided(policy).startswith("on supervised positions only")


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_equals_naive_for_every_parameter(family):
    model = make_model(family, attention="varlen").train()
    batch = make_batch(LENGTHS)
    targets = batch.input_ids[0, POSITIONS]
    policy = make_policy(model)
    gradients = []
    for loss in (NaiveCausalLm(label_smoothing=0.1, z_loss=1e-3), FusedCausalLm(label_smoothing=0.1, z_loss=1e-3)):
        torch.manual_seed(1)
        model.zero_grad()
        hidden, head = policy.project(batch=batch, positions=POSITIONS)
        out = loss(hidden=hidden, head=head, targets=targets)
        out.loss_sum.backward()
        gradients.append((out.loss_sum.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (naive, want), (fused, got) = gradients
    torch.testing.assert_close(fused, naive, rtol=1e-5, atol=0)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item(), msg=name)


@pytest.mark.parametrize("accepts_positions", [True, False])
def test_a_head_that_lies_falls_back_to_the_models_own_logits(monkeypatch, accepts_positions):
    model = make_model("qwen3", attention="varlen")
    plain = type(model).forward

    def scaled(self, *args, **kwargs):
        out = plain(self, *args, **kwargs)
        out.logits = out.logits * 1.7
        return out

    def without_positions(self, input_ids=None, position_ids=None, use_cache=None, **kwargs):
        return scaled(self, input_ids=input_ids, position_ids=position_ids, use_cache=use_cache, **kwargs)

    if accepts_positions:
        scaled.__wrapped__ = plain
    monkeypatch.setattr(type(model), "forward", scaled if accepts_positions else without_positions)
    batch = make_batch(LENGTHS)
    policy = make_policy(model)
    where = "at supervised positions" if accepts_positions else "at all positions"
    assert decided(policy).startswith(f"the model's own logits {where}")
    assert "differ from what its configuration says" in decided(policy)
    hidden, head = policy.project(batch=batch, positions=POSITIONS)
    assert head == Head(weight=None)
    torch.testing.assert_close(head.logits(hidden), own_logits(model, batch), rtol=1e-4, atol=1e-4)


def test_lora_on_the_head_falls_back_and_lora_elsewhere_does_not():
    batch = make_batch(LENGTHS)
    for targets, fused in ((["q_proj", "v_proj"], True), (["q_proj", "lm_head"], False)):
        config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        model = peft.get_peft_model(make_model("qwen3", attention="varlen"), config).eval()
        policy = make_policy(model)
        assert decided(policy).startswith("on supervised positions") == fused
        hidden, head = policy.project(batch=batch, positions=POSITIONS)
        torch.testing.assert_close(head.logits(hidden), own_logits(model, batch), rtol=1e-4, atol=1e-4)
        FusedCausalLm()(hidden=hidden, head=head, targets=batch.input_ids[0, POSITIONS]).loss_sum.backward()
        trained = [name for name, p in model.named_parameters() if p.grad is not None]
        assert trained
        assert all("lora_" in name for name in trained)
        assert any("lm_head" in name for name in trained) != fused


def test_hooks_on_the_head_fall_back():
    model = make_model("qwen3", attention="varlen")
    model.lm_head.register_forward_hook(lambda module, args, output: output + 1)
    policy = make_policy(model)
    assert "hooks" in decided(policy)
    hidden, head = policy.project(batch=make_batch(LENGTHS), positions=POSITIONS)
    torch.testing.assert_close(head.logits(hidden), own_logits(model, make_batch(LENGTHS)), rtol=1e-4, atol=1e-4)


def test_a_model_that_ignores_the_positions_gives_logits_at_them_all_the_same(monkeypatch):
    model = make_model("qwen3", attention="varlen")
    plain = type(model).forward

    def at_every_position(self, *args, logits_to_keep=0, **kwargs):
        out = plain(self, *args, **kwargs)
        out.logits = out.logits * 1.7
        return out

    monkeypatch.setattr(type(model), "forward", at_every_position)
    batch = make_batch(LENGTHS)
    hidden, head = make_policy(model).project(batch=batch, positions=POSITIONS)
    assert head == Head(weight=None)
    torch.testing.assert_close(hidden, own_logits(model, batch), rtol=1e-4, atol=1e-4)


def test_own_logits_of_documents_that_share_a_prefix():
    model = make_model("qwen3", attention="varlen")
    model.lm_head.register_forward_hook(lambda module, args, output: output + 1)
    first, second = np.arange(3, 10), np.arange(20, 24)
    batch = pack([first, second], rows=(0, 1), count=0, shared_prefixes=(0, 3))
    logits, head = make_policy(model).project(batch=batch, positions=torch.tensor([2, 6, 7, 10]))
    assert head == Head(weight=None)
    alone = [torch.from_numpy(ids)[None] for ids in (first, np.concatenate([first[:3], second]))]
    one, other = (model(input_ids=ids, use_cache=False).logits[0] for ids in alone)
    torch.testing.assert_close(logits, torch.stack([one[2], one[6], other[3], other[6]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("gpt2", {"attn_pdrop": 0.0}), ("qwen3", {"attention_dropout": 1e-6}), ("qwen3", {"attention_dropout": 0.1})],
)
def test_dropout_of_layers_and_of_attention_repeats_shared_prefixes(family, changes):
    policy = make_policy(make_model(family, attention="varlen", **changes), share_prefixes=True)
    assert not policy.shares_prefixes
    assert "dropout" in dict(policy.features)["shared prefixes"]


def test_functional_dropout_that_no_config_names_repeats_shared_prefixes():
    model = make_model("qwen3", attention="varlen")
    drop = torch.nn.functional.dropout
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: drop(output, 0.01, module.training))
    features = dict(make_policy(model, share_prefixes=True).features)
    assert features["shared prefixes"].startswith("repeated: dropout")


def test_the_dropout_of_an_adapter_that_changes_nothing_yet_repeats_shared_prefixes():
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    for rate, shared in ((0.1, "repeated: dropout"), (0.0, "computed once")):
        config.lora_dropout = rate
        model = peft.get_peft_model(make_model("qwen3", attention="varlen"), config)
        assert dict(make_policy(model, share_prefixes=True).features)["shared prefixes"].startswith(shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_float32_whatever_the_model_computes_in(dtype):
    policy = make_policy(make_scorer("qwen3", attention="varlen").to(dtype))
    scores = policy.scores(batch=make_batch(LENGTHS), positions=POSITIONS)
    assert (scores.dtype, scores.shape) == (torch.float32, POSITIONS.shape)


@pytest.mark.parametrize(
    ("leaks", "problem"),
    [
        (lambda first_id: first_id % 2 == 0, "change with the document before it"),
        (lambda first_id: True, "differ from those that it has alone"),
    ],
)
def test_a_leak_is_found_by_its_content_and_by_its_presence(leaks, problem):
    """The first one shows only in the probe whose first id is even, the second one in every probe of two documents."""
    model = make_model("qwen3", attention="varlen")

    def leak(module, args, inputs, output):
        if len(inputs.get("document_lengths", ())) > 1 and leaks(int(inputs["input_ids"][0, 0])):
            output.last_hidden_state = output.last_hidden_state + 1
        return output

    model.model.register_forward_hook(leak, with_kwargs=True)
    policy = make_policy(model)
    assert policy.leak is not None
    assert problem in policy.leak


def leaking_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Causal over the whole sequence, as if it were one document."""
    return varlen_attention(module, query, key, value, None, scaling=scaling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_that_leaks_computes_one_document_per_pass(dtype):
    transformers.AttentionInterface.register("leaking", leaking_attention)
    transformers.AttentionMaskInterface.register("leaking", varlen_mask)
    model = make_model("qwen3", attention="leaking", dtype=dtype)
    policy = make_policy(model)
    assert policy.one_document
    hidden, head = policy.project(batch=make_batch(LENGTHS), positions=POSITIONS)
    want = own_logits(model, make_batch(LENGTHS))
    torch.testing.assert_close(head.logits(hidden), want, rtol=2e-2, atol=2e-1 if dtype == torch.bfloat16 else 1e-4)


def test_the_probe_disturbs_nothing():
    model = make_model("gpt2", attention="varlen").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    make_policy(model)
    assert torch.equal(torch.rand(3), want)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_replaced_parameter_is_seen():
    model = make_model("qwen3", attention="varlen")
    policy = make_policy(model)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    hidden, head = policy.project(batch=make_batch(LENGTHS), positions=POSITIONS)
    assert not head.logits(hidden).any()


def test_no_position_is_kept():
    policy = make_policy(make_model("qwen3", attention="varlen"))
    hidden, head = policy.project(batch=make_batch(LENGTHS), positions=torch.empty(0, dtype=torch.int64))
    assert hidden.shape == (0, 32)
    assert head.logits(hidden).shape == (0, 61)


def test_a_head_computes_bias_scale_and_cap():
    head = Head(weight=torch.tensor([[2.0], [-1.0]]), bias=torch.tensor([1.0, 0.0]), scale=0.5, soft_cap=2.0)
    hidden = torch.tensor([[3.0]])
    torch.testing.assert_close(head.logits(hidden), 2 * torch.tanh(torch.tensor([[3.5, -1.5]]) / 2))
    assert head.logits(hidden.bfloat16()).dtype == torch.float32
    assert Head(weight=None).logits(hidden) is hidden
