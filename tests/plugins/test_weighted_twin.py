"""An optimizer step over weighted tokens equals a loop over rows in float64, however its rows are dealt out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.toolkit.causal import CausalStage, causal_example
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_plugins.losses.fused import FusedCausalLm
from bumblecore_plugins.losses.naive import NaiveCausalLm
from tiny_models import VOCABULARY, make_model, register_attentions

OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-2}
LENGTHS = (7, 3, 12, 2, 9, 5, 10)
# Most tokens of some rows count 1 %; some rows have no weights at all, and some spans none.
SPANS = [
    ([(1, 3), (4, 7)], [1.0, 0.01]),
    ([(0, 3)], None),
    ([(2, 11), (11, 12)], [0.01, 1.0]),
    ([(1, 2)], [0.01]),
    ([(0, 4), (5, 6), (7, 9)], [2.5, 0.0, 1 / 3]),
    ([(3, 5)], [0.01]),
    ([(1, 5), (5, 9)], [0.5, 1.0]),
]

# Rows of a micro-batch, micro-batches, ranks, packing. With two ranks one of them has a micro-batch that is a filler.
SPLITS = [
    (7, 1, 1, False),
    (1, 7, 1, False),
    (2, 4, 1, False),
    (2, 2, 2, False),
    (1, 5, 2, False),
    (2, 3, 1, True),
    (1, 3, 2, True),
]


@pytest.fixture(autouse=True)
def registered():
    register_attentions()


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    return [generator.integers(3, VOCABULARY, length) for length in LENGTHS]


def model_of(attention):
    """GPT-2, which computes in float64 throughout."""
    options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = make_model("gpt2", attention=attention, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.div_(4)
    return model.double()


def gradients_of(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def naive(rows, label_smoothing, z_loss):
    """(loss of the step, nll, gradients): token by token, each row alone, by the model's own logits."""
    model = model_of("sdpa")
    total, nll, weights = torch.zeros((), dtype=torch.float64), 0.0, 0.0
    for ids, (spans, factors) in zip(rows, SPANS, strict=True):
        logits = model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0]
        for number, (start, end) in enumerate(spans):
            weight = float(np.float32(factors[number])) if factors else 1.0
            for at in range(max(start, 1), end):
                peak = torch.logsumexp(logits[at - 1], 0)
                right, even = peak - logits[at - 1, ids[at]], peak - logits[at - 1].mean()
                total = total + weight * ((1 - label_smoothing) * right + label_smoothing * even + z_loss * peak**2)
                nll, weights = nll + weight * right.item(), weights + weight
    (total / weights).backward()
    return total.item() / weights, nll / weights, gradients_of(model)


def step(rows, loss, micro, accumulation, world, packing):
    """(loss, nll, gradients) of one step of all rows, through examples, plan, collate, policy and loss. Gradients of
    ranks are added up, as engines do it."""
    examples = [causal_example(ids, spans, weights=weights) for ids, (spans, weights) in zip(rows, SPANS, strict=True)]
    options = PlanOptions(
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        world_size=world,
        seed=1,
        packing=packing,
        max_length=14,
    )
    lengths, counts = np.asarray(LENGTHS), np.asarray([float(example.count) for example in examples])
    plan = BatchPlan(lengths=lengths, counts=counts, rows=np.arange(len(rows)), options=options, max_steps=1)
    (window,) = plan.windows()
    model = model_of("varlen")
    stage, policy = CausalStage(lambda samples, context: [], None), make_policy(model)
    model.zero_grad()
    total = nll = count = 0.0
    for micro_batch in (micro_batch for rank in window.micro_batches for micro_batch in rank):
        kept = [examples[row] for row in micro_batch.rows]
        batch = stage.collate(
            examples=[example.columns for example in kept],
            rows=micro_batch.rows,
            counts=[example.count for example in kept],
        )
        output = stage.step(policy=policy, batch=batch, loss=loss)
        (output.loss_sum * (1.0 / window.count if micro_batch.counts else 0.0)).backward()
        if micro_batch.counts:
            total, count = total + output.loss_sum.item(), count + float(output.count)
            nll += float(output.metrics["nll"].total) if output.metrics else output.loss_sum.item()
    assert count == pytest.approx(window.count, rel=1e-14)
    return total / count, nll / count, gradients_of(model)


@pytest.fixture(scope="module")
def expected(rows):
    register_attentions()
    return {
        bool(options): naive(rows, **{"label_smoothing": 0.0, "z_loss": 0.0, **options}) for options in ({}, OPTIONS)
    }


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "smoothed"])
@pytest.mark.parametrize("make", [FusedCausalLm, NaiveCausalLm])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_split_of_a_step_equals_the_naive_twin(rows, expected, make, options, split):
    loss = make(**options, **({"chunk_tokens": 3} if make is FusedCausalLm else {}))
    found = step(rows, loss, *split)
    wanted = expected[bool(options)]
    assert found[:2] == pytest.approx(wanted[:2], rel=1e-12)
    for name, gradient in wanted[2].items():
        atol = 1e-12 * gradient.abs().max().item() + 1e-16
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-10, atol=atol, msg=name)


def test_weights_change_the_step(rows, expected):
    """Otherwise the twin would show nothing."""
    even = [causal_example(ids, spans) for ids, (spans, _) in zip(rows, SPANS, strict=True)]
    batch = CausalStage(lambda samples, context: [], None).collate(
        examples=[example.columns for example in even], rows=range(7), counts=[example.count for example in even]
    )
    policy = make_policy(model_of("varlen"))
    output = CausalStage(lambda samples, context: [], None).step(policy=policy, batch=batch, loss=NaiveCausalLm())
    assert abs(output.loss_sum.item() / output.count - expected[False][0]) > 1e-2
