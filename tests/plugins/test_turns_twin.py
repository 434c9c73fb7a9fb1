"""Turns of one conversation in one example equal a pass over each turn's text by itself: losses and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from bumblecore_core.toolkit.causal import CausalStage, causal_example
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_core.toolkit.turns import joined_turns
from bumblecore_plugins.losses.naive import NaiveCausalLm
from tiny_models import FAMILIES, RECURRENT, VOCABULARY, make_model, register_attentions

LONG = 10_000


@pytest.fixture(autouse=True)
def registered():
    register_attentions()


def ids(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()


def conversation(*, weights=None):
    """Three turns whose replies stand otherwise in the history of later ones: (ids, trained from)."""
    prompt, history, question = ids(0, 5), ids(1, 3), ids(2, 4)
    second = prompt + history + question
    third = second + history + question[:2]
    turns = [(prompt + ids(3, 6), 5), (second + ids(4, 5), len(second)), (third + ids(5, 7), len(third))]
    weights = weights or [None] * 3
    return [
        causal_example(tokens, [(start, len(tokens))], weights=None if weight is None else [weight])
        for (tokens, start), weight in zip(turns, weights, strict=True)
    ]


def arrays(example):
    return {name: np.asarray(values, dtype=np.int32) for name, values in example.columns.items()}


def batch_of(examples):
    stage = CausalStage(lambda samples, context: [], None)
    counts = [example.count for example in examples]
    return stage, stage.collate(examples=[arrays(one) for one in examples], rows=range(len(examples)), counts=counts)


def losses_by_hand(model, turns, weights):
    """Σ weight · negative log-likelihood of each turn's trained tokens, one pass for each text."""
    total = 0
    for turn, weight in zip(turns, weights, strict=True):
        tokens = torch.tensor(np.asarray(turn.columns["input_ids"], dtype=np.int64))
        logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
        start = int(turn.columns["spans"][0])
        each = functional.cross_entropy(logits[start - 1 : -1], tokens[start:], reduction="none")
        total = total + weight * each.double().sum()
    return total


CASES = [(family, attention) for family in FAMILIES for attention in ("varlen", "sdpa", "eager")]


@pytest.mark.parametrize(("family", "attention"), [*CASES, *((family, "eager") for family in RECURRENT)])
def test_turns_in_one_example_equal_separate_texts(family, attention):
    if attention == "sdpa" and family == "gemma2":
        pytest.skip("transformers has no SDPA for its soft caps")
    model = make_model(family, attention=attention)
    weights = [1.0, 0.5, 2.0]
    turns = conversation(weights=weights)
    other = causal_example(ids(9, 7), [(3, 7)])
    expected = losses_by_hand(model, [*turns, other], [*weights, 1.0])
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    (joined,) = joined_turns(turns, max_length=LONG)
    stage, batch = batch_of([other, joined, other])
    policy = make_policy(model, share_prefixes=True)
    # Sharing that gives other numbers is not used, so that the comparison below would not see it.
    assert policy.shares_prefixes == (attention == "varlen" and family != "gpt2"), policy.features
    output = stage.step(policy=policy, batch=batch, loss=NaiveCausalLm())
    repeated = losses_by_hand(model, [other], [1.0]).detach()
    assert output.loss_sum.item() == pytest.approx((expected + repeated).item(), rel=2e-6)
    (output.loss_sum - losses_by_hand(model, [other], [1.0])).backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for left, right in zip(found, gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5 * float(right.abs().max()) + 1e-7)


def test_the_trunk_is_computed_once():
    turns = conversation()
    (joined,) = joined_turns(turns, max_length=LONG)
    assert joined.count == sum(turn.count for turn in turns)
    replies = sum(turn.count for turn in turns[:2])
    assert joined.length == turns[-1].length + replies
    _, batch = batch_of([joined])
    assert batch.document_lengths == (turns[-1].length, 5, 6)
    assert batch.shared_prefixes == (0, 12, 5)


def test_turns_that_do_not_fit_together_are_several_examples():
    turns = conversation()
    assert [turn.length for turn in turns] == [11, 17, 24]
    two = joined_turns(turns, max_length=24)
    assert [example.length for example in two] == [17 + 6, 24]
    assert [list(example.columns["prefixes"]) for example in two] == [[17, 5], []]
    assert sum(example.count for example in two) == sum(turn.count for turn in turns)
    two = joined_turns(turns, max_length=24 + 5)
    assert [example.length for example in two] == [11, 24 + 5]


def test_turns_without_a_common_beginning_are_examples_of_their_own():
    turns = [causal_example([5, 6, 7], [(1, 3)]), causal_example([8, 6, 7], [(1, 3)])]
    assert [example.length for example in joined_turns(turns, max_length=LONG)] == [3, 3]
