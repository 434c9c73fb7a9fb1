"""The passes of the stage `kto` over concatenated rows equal what a naive twin computes in separate passes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from kto_rows import SAMPLES, SOURCES, stage_of, with_sums
from torch.nn import functional
from transformers import AutoTokenizer

from bumblecore_core.toolkit.policy import make_policy
from bumblecore_plugins.losses import bumble_losses
from tiny_models import RECURRENT, make_model, register_attentions
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


def examples_of(stage, samples, reference=None):
    examples = [
        {name: np.asarray(value, np.int32) for name, value in example.columns.items()}
        for example in stage.encode(samples=samples)
    ]
    if reference is not None:
        with torch.no_grad():
            figures = stage.reference_step(policy=make_policy(reference), batch=collated(stage, examples))
        assert tuple(figures) == stage.reference.columns
        for name, values in figures.items():
            for example, value in zip(examples, values.numpy(), strict=True):
                example[name] = value[None]
    return examples


def collated(stage, examples, rows=None):
    return stage.collate(examples=examples, rows=rows or range(len(examples)), counts=[1] * len(examples))


def batch_of(stage, samples, reference=None):
    return collated(stage, examples_of(stage, samples, reference))


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
@pytest.mark.parametrize(
    ("family", "attention"),
    [("qwen3", "varlen"), ("llama", "sdpa"), ("gpt2", "eager"), *((family, "eager") for family in RECURRENT)],
)
def test_rows_computed_together_equal_separate_passes(family, attention, kl, tokenizer):
    one, other = gentle(family, attention), gentle(family, attention, seed=5)
    stage, estimates = stage_of(tokenizer, kl=kl), []
    for model, reference in ((one, other), (other, one)):  # z₀ is positive in at least one of the two
        batch = batch_of(stage, SAMPLES, reference)
        model.zero_grad()
        policy = make_policy(model)
        (batch,) = with_sums(stage, policy, batch) if kl else (batch,)
        out = stage.step(policy=policy, batch=batch, loss=built(**OPTIONS))
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
    policy = make_policy(model)
    given = {}

    def loss(**inputs):
        given.update(inputs)
        return built()(**inputs)

    for moved, expected in ((-2.0, 2.0), (2.0, 0.0)):  # nats that the reference says less or more of other completions
        there = batch.extras | {"reference_other": batch.extras["reference_other"] + moved}
        (batch_moved,) = with_sums(stage, policy, replace(batch, extras=there))
        stage.step(policy=policy, batch=batch_moved, loss=loss)
        assert float(given["kl"]) == pytest.approx(expected, abs=1e-4)
        assert not given["kl"].requires_grad
        assert given["completion"].requires_grad


def test_losses_and_gradients_do_not_depend_on_how_a_step_is_split(tokenizer):
    model, stage = gentle("qwen3", "varlen"), stage_of(tokenizer)
    policy, examples = make_policy(model), examples_of(stage, SAMPLES, gentle("qwen3", "varlen", seed=5))
    found = []
    for split in ([range(5)], [[4, 1], [0, 2, 3]], [[at] for at in range(5)]):
        batches = [collated(stage, [examples[at] for at in part], part) for part in split]
        batches = with_sums(stage, policy, *batches)
        model.zero_grad()
        outs = [stage.step(policy=policy, batch=batch, loss=built(**OPTIONS)) for batch in batches]
        sum(out.loss_sum for out in outs).backward()
        found.append((sum(out.loss_sum.item() for out in outs), gradients(model)))
        assert all(float(out.metrics["kl"].total / out.metrics["kl"].weight) > 0.1 for out in outs)
    for loss, ours in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, gradient in ours.items():
            scale = float(found[0][1][name].abs().max())
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-4, atol=1e-5 * scale)


def test_a_training_pass_computes_a_rows_own_completion_alone(tokenizer):
    model, stage = gentle("qwen3", "varlen"), stage_of(tokenizer)
    batch = batch_of(stage, SAMPLES, model)
    assert batch.tokens == sum(len(example.columns["row_ids"]) for example in stage.encode(samples=SAMPLES))
    real, seen = stage._logprobs, []

    def watched(**given):
        seen.append((len(given["targets"]), torch.is_grad_enabled()))
        return real(**given)

    stage._logprobs = watched
    policy = make_policy(model)
    (batch,) = with_sums(stage, policy, batch)
    stage.step(policy=policy, batch=batch, loss=built())
    others = len(batch.extras["other_targets"])
    assert seen == [(others, False), (batch.scored, True)]
    without = batch_of(stage_of(tokenizer, kl=False), SAMPLES)
    assert not any(name.startswith("other_") for name in without.extras)
    assert without.tokens == batch.tokens


def test_a_row_without_another_completion_has_no_part_in_the_estimate(tokenizer):
    model, stage = gentle("qwen3", "varlen"), stage_of(tokenizer)
    policy = make_policy(model)
    alone = stage.encode(samples=SAMPLES[:1])
    three = stage.encode(samples=SAMPLES[2:])
    examples = [
        {name: np.asarray(value, np.int32) for name, value in e.columns.items()}
        | {"reference_row": np.float32([-9.0]), "reference_other": np.float32([0.0 if at == 0 else -500.0])}
        for at, e in enumerate([*alone, *three])
    ]
    sums, kls = [], []
    for part in (examples, examples[1:], examples[:1]):
        batch = collated(stage, part)
        out = stage.step(policy=policy, batch=with_sums(stage, policy, batch)[0], loss=built())
        sums.append(out.loss_sum.item())
        kls.append(float(out.metrics["kl"].total / out.metrics["kl"].weight))
    assert kls[0] == pytest.approx(kls[1], rel=1e-5)
    assert kls[0] > 100
    assert kls[2] == 0.0
    assert all(math.isfinite(value) for value in sums)
    assert (stage.least_rows, stage_of(tokenizer, kl=False).least_rows) == (2, 1)
