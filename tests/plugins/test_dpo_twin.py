"""The shared layout of preference pairs equals separate passes over each sequence: log-probabilities and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from bumblecore_core import StageContext, StepOutput
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_plugins.stages import DpoOptions
from bumblecore_plugins.stages.dpo import PreferenceStage
from bumblecore_plugins.stages.pair_layout import lay_out, shared_length
from tiny_models import FAMILIES, RECURRENT, VOCABULARY, make_model, register_attentions
from workbench import make_tokenizer

BETA = 0.3


@pytest.fixture(autouse=True)
def registered():
    register_attentions()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return AutoTokenizer.from_pretrained(next(iter(tmp_path_factory.getbasetemp().glob("tokenizer*"))))


def stage_of(tokenizer, max_length=64, **options):
    return PreferenceStage(DpoOptions(**options), StageContext(tokenizer=tokenizer, max_length=max_length))


def pair(chosen, rejected, start, spans=None):
    """An example whose completions begin at token `start` of both sequences."""
    return {
        "chosen_ids": np.asarray(chosen, np.int32),
        "rejected_ids": np.asarray(rejected, np.int32),
        "chosen_spans": np.asarray(spans[0] if spans else [start, len(chosen)], np.int32),
        "rejected_spans": np.asarray(spans[1] if spans else [start, len(rejected)], np.int32),
    }


def ids(seed, count):
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()


PROMPT = ids(0, 6)
PAIRS = {
    "usual": pair(PROMPT + ids(1, 5), PROMPT + ids(2, 8), 6),
    "common beginning of the completions": pair([*PROMPT, 7, 8, 9, 10], [*PROMPT, 7, 8, 11, 12, 13], 6),
    "nothing in common": pair([5, *ids(3, 7)], [6, *ids(4, 4)], 3),
    "one is the beginning of the other": pair([*PROMPT, 7, 8, 9], [*PROMPT, 7, 8], 6),
    "the other is the beginning of the one": pair([*PROMPT, 7], [*PROMPT, 7, 8, 9, 20], 6),
    "one token each": pair([*PROMPT, 7], [*PROMPT, 8], 6),
    "several turns": pair(PROMPT + ids(5, 9), PROMPT + ids(6, 9), 6, ([6, 8, 11, 15], [6, 9, 12, 14])),
    "spans that differ in the common part": pair(
        [*PROMPT, 7, 8, 9, 10], [*PROMPT, 7, 8, 9, 11], 6, ([6, 7, 9, 10], [7, 10])
    ),
}


def separate(model, example):
    """(chosen, rejected): each token's log-probability by the model's own logits of the sequence alone."""
    found = []
    for side in ("chosen", "rejected"):
        tokens = torch.from_numpy(example[f"{side}_ids"].astype(np.int64))
        logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
        every = functional.log_softmax(logits[:-1], -1).gather(1, tokens[1:, None])[:, 0]
        spans = example[f"{side}_spans"].reshape(-1, 2).tolist()
        found.append(torch.cat([every[start - 1 : end - 1] for start, end in spans]).double())
    return found


class Recording:
    """A loss that keeps what it is given."""

    def __call__(self, **given):
        self.given = given
        margin = BETA * (given["chosen"] - given["rejected"])
        return StepOutput(loss_sum=-functional.logsigmoid(margin).sum(), count=len(margin))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CASES = [(family, attention) for family in FAMILIES for attention in ("varlen", "sdpa", "eager")]


@pytest.mark.parametrize(("family", "attention"), [*CASES, *((family, "eager") for family in RECURRENT)])
def test_one_pass_over_the_shared_layout_equals_separate_passes(family, attention, tokenizer):
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("Gemma 2 has no SDPA")
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    model = make_model(family, attention=attention, **dropouts).train()
    with torch.no_grad():  # gentler weights: log-probabilities of tens, not of hundreds
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.div_(3)
    stage, loss = stage_of(tokenizer), Recording()
    batch = stage.collate(examples=list(PAIRS.values()), rows=range(len(PAIRS)), counts=[1] * len(PAIRS))
    policy = make_policy(model, share_prefixes=True)
    shared = dict(policy.features)["shared prefixes"]
    assert shared == "computed once" if attention == "varlen" else shared.startswith("repeated")
    output = stage.step(policy=policy, batch=batch, loss=loss)
    model.zero_grad()
    output.loss_sum.backward()
    ours = gradients(model)
    model.zero_grad()
    sums = [[side.sum() for side in separate(model, example)] for example in PAIRS.values()]
    chosen, rejected = (torch.stack([pair[side] for pair in sums]) for side in (0, 1))
    torch.testing.assert_close(loss.given["chosen"], chosen, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.given["rejected"], rejected, rtol=1e-5, atol=1e-4)
    (-functional.logsigmoid(BETA * (chosen - rejected)).sum()).backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * max(1.0, float(gradient.abs().max())))


def test_the_layout_holds_the_common_beginning_once():
    for example in PAIRS.values():
        shared = shared_length(example["chosen_ids"], example["rejected_ids"])
        layout = lay_out([example], late_weight=1.0)
        tokens = sum(map(len, layout.documents))
        assert tokens == len(example["chosen_ids"]) + len(example["rejected_ids"]) - shared
        assert min(map(len, layout.documents)) >= 1
        assert np.array_equal(
            np.concatenate([layout.documents[0][:shared], layout.documents[1]]), example["rejected_ids"]
        )
    usual, same = (lay_out([PAIRS[name]], late_weight=1.0) for name in ("usual", "common beginning of the completions"))
    assert len(usual.extras["positions"]) == 5 + 8
    assert len(same.extras["positions"]) == 4 + 3  # two of the rejected one's five are the chosen one's


def test_lengths_and_late_tokens(tokenizer):
    model = make_model("qwen3", attention="varlen")
    example = PAIRS["usual"]
    stage, loss = stage_of(tokenizer, ld_alpha=0.25), Recording()
    batch = stage.collate(examples=[example], rows=[0], counts=[1])
    stage.step(policy=make_policy(model, share_prefixes=True), batch=batch, loss=loss)
    chosen, rejected = separate(model, example)
    torch.testing.assert_close(loss.given["chosen"][0], chosen.sum(), rtol=1e-4, atol=1e-4)
    expected = rejected[:5].sum() + 0.25 * rejected[5:].sum()
    torch.testing.assert_close(loss.given["rejected"][0], expected, rtol=1e-4, atol=1e-4)
    assert loss.given["chosen_lengths"].tolist() == [5]
    assert loss.given["rejected_lengths"].tolist() == [8]
    assert batch.head_positions == 13


def test_the_chosen_completions_likelihood_joins_the_loss(tokenizer):
    model = make_model("qwen3", attention="varlen")
    policy = make_policy(model, share_prefixes=True)
    examples = [PAIRS["usual"], PAIRS["several turns"]]
    outputs = []
    for weight in (0.0, 0.5):
        stage = stage_of(tokenizer, sft_weight=weight, ld_alpha=0.5)
        batch = stage.collate(examples=examples, rows=[0, 1], counts=[1, 1])
        outputs.append(stage.step(policy=policy, batch=batch, loss=Recording()))
    nll = sum(-separate(model, example)[0].mean() for example in examples)
    torch.testing.assert_close(outputs[1].loss_sum - outputs[0].loss_sum, 0.5 * nll.float(), rtol=1e-3, atol=1e-3)
    metric = outputs[1].metrics["nll"]
    torch.testing.assert_close(metric.total, nll.detach(), rtol=1e-4, atol=1e-4)
    assert metric.weight == 2


def test_dropout_repeats_prefixes():
    model = make_model("qwen3", attention="varlen", attention_dropout=0.1)
    assert "dropout" in dict(make_policy(model, share_prefixes=True).features)["shared prefixes"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_gives_what_the_policy_gives(family, tokenizer):
    model = make_model(family, attention="varlen")
    stage, loss = stage_of(tokenizer), Recording()
    policy = make_policy(model, share_prefixes=True)
    batch = stage.collate(examples=list(PAIRS.values()), rows=range(len(PAIRS)), counts=[1] * len(PAIRS))
    stage.step(policy=policy, batch=batch, loss=loss)
    with torch.no_grad():
        figures = stage.reference_step(policy=policy, batch=batch)
    assert torch.equal(figures["reference_chosen"], loss.given["chosen"].detach())
    assert torch.equal(figures["reference_rejected"], loss.given["rejected"].detach())
