"""One pass of the stage `kto` over the shared layout equals what a naive twin computes in separate passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kto_rows import SAMPLES, SOURCES, stage_of
from torch.nn import functional
from transformers import AutoTokenizer

from bumblecore_core.toolkit.policy import make_policy
from bumblecore_plugins.losses import bumble_losses
from tiny_models import make_model, register_attentions
from workbench import make_tokenizer

RECORD = next(record for record in bumble_losses() if record.name == "kto")
OPTIONS = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}


@pytest.fixture(autouse=True)
def registered():
    register_attentions()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def built(**options):
    return RECORD.build(options=RECORD.options(**options))


def logp(model, tokenizer, prompt, completion):
    """log π(completion | prompt) by the model's own logits of the conversation alone."""
    before = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False).rstrip("\n")
    start, ids = len(tokenizer(before).input_ids), torch.tensor(tokenizer(whole).input_ids)
    logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
    return functional.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[start - 1 :, 0].double().sum()


def gentle(family, attention, seed=0):
    """Weights small enough for log-probabilities of tens, not of hundreds."""
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    model = make_model(family, attention=attention, vocab_size=300, **dropouts).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.div_(3).add_(0.02 * seed * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of(stage, samples, reference=None):
    examples = [
        {name: np.asarray(value, np.int32) for name, value in example.columns.items()}
        for example in stage.encode(samples=samples)
    ]
    given = {"rows": range(len(examples)), "counts": [1] * len(examples)}
    if reference is not None:
        with torch.no_grad():
            figures = stage.reference_step(
                policy=make_policy(reference, share_prefixes=True), batch=stage.collate(examples=examples, **given)
            )
        assert tuple(figures) == stage.reference.columns
        for name, values in figures.items():
            for example, value in zip(examples, values.numpy(), strict=True):
                example[name] = value[None]
    return stage.collate(examples=examples, **given)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive(model, reference, tokenizer, *, kl):
    """(loss, z₀) by a forward pass of each model for each completion of each prompt."""

    def ratio(prompt_of, completion_of):
        with torch.no_grad():
            theirs = logp(reference, tokenizer, prompt_of.prompt, completion_of.completion)
        return logp(model, tokenizer, prompt_of.prompt, completion_of.completion) - theirs

    z = torch.zeros(())
    if kl:
        with torch.no_grad():
            others = [ratio(sample, SAMPLES[at]) for sample, at in zip(SAMPLES, SOURCES, strict=True)]
        z = torch.stack(others).mean().clamp(min=0)
    losses = [
        1.2 * (1 - torch.sigmoid(0.3 * (ratio(sample, sample) - z)))
        if sample.label
        else 0.7 * (1 - torch.sigmoid(0.3 * (z - ratio(sample, sample))))
        for sample in SAMPLES
    ]
    return torch.stack(losses).sum(), z


@pytest.mark.parametrize("kl", [True, False])
@pytest.mark.parametrize(("family", "attention"), [("qwen3", "varlen"), ("llama", "sdpa"), ("gpt2", "eager")])
def test_one_pass_equals_separate_passes(family, attention, kl, tokenizer):
    one, other = gentle(family, attention), gentle(family, attention, seed=5)
    stage, estimates = stage_of(tokenizer, kl=kl), []
    for model, reference in ((one, other), (other, one)):  # z₀ is positive in at least one of the two
        batch = batch_of(stage, SAMPLES, reference)
        model.zero_grad()
        out = stage.step(policy=make_policy(model, share_prefixes=True), batch=batch, loss=built(**OPTIONS))
        out.loss_sum.backward()
        ours = gradients(model)
        model.zero_grad()
        loss, z = naive(model, reference, tokenizer, kl=kl)
        loss.backward()
        theirs = gradients(model)
        torch.testing.assert_close(out.loss_sum, loss.float(), rtol=1e-4, atol=1e-4)
        estimates.append(float(z))
        assert ("kl" in out.metrics) == kl
        if kl:
            measured = out.metrics["kl"]
            torch.testing.assert_close(measured.total / measured.weight, z, rtol=1e-3, atol=1e-3)
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            scale = max(1e-2, float(gradient.abs().max()))
            torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * scale)
    assert (max(estimates) > 0.5) == kl, estimates


def test_the_estimate_has_no_gradient_and_is_not_negative(tokenizer):
    model, stage = gentle("qwen3", "varlen"), stage_of(tokenizer)
    batch = batch_of(stage, SAMPLES, model)
    policy = make_policy(model, share_prefixes=True)
    given = {}

    def loss(**inputs):
        given.update(inputs)
        return built()(**inputs)

    for moved, expected in ((-2.0, 2.0), (2.0, 0.0)):  # nats that the reference says less or more of other completions
        there = batch.extras | {"reference_other": batch.extras["reference_other"] + moved}
        batch_moved = type(batch)(**{name: getattr(batch, name) for name in batch.__slots__} | {"extras": there})
        stage.step(policy=policy, batch=batch_moved, loss=loss)
        assert float(given["kl"]) == pytest.approx(expected, abs=1e-4)
        assert not given["kl"].requires_grad
        assert given["completion"].requires_grad


def test_other_completions_are_computed_without_a_gradient(tokenizer):
    model, stage = gentle("qwen3", "varlen"), stage_of(tokenizer)
    batch = batch_of(stage, SAMPLES)
    own = sum(batch.extras["chosen_lengths"].tolist())
    assert batch.extras["chosen_at"].tolist() == list(range(own))  # so that one pass of the head takes them alone
    assert set(range(own, batch.scored)) <= set(batch.extras["rejected_at"].tolist())
    real, seen = stage._logprobs, []

    def watched(**given):
        seen.append((len(given["targets"]), torch.is_grad_enabled()))
        return real(**given)

    stage._logprobs = watched
    assert stage.summed(make_policy(model, share_prefixes=True), batch)["row"].requires_grad
    assert seen == [(own, True), (batch.scored - own, False)]


def test_a_row_without_another_completion_has_no_part_in_the_estimate(tokenizer):
    model, stage = gentle("qwen3", "varlen"), stage_of(tokenizer)
    policy = make_policy(model, share_prefixes=True)
    alone = stage.encode(samples=SAMPLES[:1])
    three = stage.encode(samples=SAMPLES[2:])
    examples = [
        {name: np.asarray(value, np.int32) for name, value in e.columns.items()}
        | {"reference_row": np.float32([-9.0]), "reference_other": np.float32([0.0 if at == 0 else -500.0])}
        for at, e in enumerate([*alone, *three])
    ]
    sums, kls = [], []
    for part in (examples, examples[1:], examples[:1]):
        batch = stage.collate(examples=part, rows=range(len(part)), counts=[1] * len(part))
        out = stage.step(policy=policy, batch=batch, loss=built())
        sums.append(out.loss_sum.item())
        kls.append(float(out.metrics["kl"].total / out.metrics["kl"].weight))
    assert kls[0] == pytest.approx(kls[1], rel=1e-5)
    assert kls[0] > 100
    assert kls[2] == 0.0
    assert all(math.isfinite(value) for value in sums)


def test_without_the_estimate_no_other_completion_is_computed(tokenizer):
    with_kl, without = (batch_of(stage_of(tokenizer, kl=kl), SAMPLES) for kl in (True, False))
    assert without.tokens == sum(len(stage.columns["row_ids"]) for stage in stage_of(tokenizer).encode(samples=SAMPLES))
    assert without.tokens < with_kl.tokens
    assert without.head_positions < with_kl.head_positions
    assert (stage_of(tokenizer).least_rows, stage_of(tokenizer, kl=False).least_rows) == (2, 1)
