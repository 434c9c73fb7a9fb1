"""The loss `kto` is its formula in plain arithmetic; gradients, figures, edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bumblecore_plugins.losses import bumble_losses

RECORD = next(record for record in bumble_losses() if record.name == "kto")
OPTIONS = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}


def built(**options):
    return RECORD.build(options=RECORD.options(**options))


def twin(completion, reference, desirable, kl, *, beta, desirable_weight, undesirable_weight):
    """(losses, rewards) row by row in plain arithmetic."""
    losses, rewards = [], []
    for policy_says, reference_says, good in zip(completion, reference, desirable, strict=True):
        ratio = policy_says - reference_says
        margin = ratio - kl if good else kl - ratio
        weight = desirable_weight if good else undesirable_weight
        losses.append(weight * (1 - 1 / (1 + math.exp(-beta * margin))))
        rewards.append(beta * ratio)
    return losses, rewards


def inputs(rows=9, *, seed=0, dtype=torch.float64, desirable=None):
    generator = torch.Generator().manual_seed(seed)
    completion = -40 * torch.rand(rows, generator=generator, dtype=torch.float64)
    reference = completion + 3 * torch.randn(rows, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (rows,), generator=generator).bool()
    return {
        "completion": completion.to(dtype).requires_grad_(),
        "reference": reference.to(dtype),
        "desirable": labels if desirable is None else torch.full((rows,), desirable),
        "kl": torch.tensor(0.8, dtype=dtype),
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_the_loss_is_its_formula(options, dtype, tolerance):
    batch = inputs(dtype=dtype)
    out = built(**options)(**batch)
    losses, _ = twin(*(batch[name].tolist() for name in batch), **RECORD.options(**options).model_dump())
    assert out.loss_sum.item() == pytest.approx(sum(losses), rel=tolerance)
    assert out.count == 9


def test_gradients_by_finite_differences():
    batch = inputs(5)
    assert torch.autograd.gradcheck(
        lambda completion: built(**OPTIONS)(**batch | {"completion": completion}).loss_sum, batch["completion"]
    )


def test_figures_are_means_over_the_rows_of_a_label():
    batch = inputs()
    out = built(**OPTIONS)(**batch)
    _, rewards = twin(*(batch[name].tolist() for name in batch), **OPTIONS)
    labels = batch["desirable"].tolist()
    assert 0 < sum(labels) < 9
    for figure, values in (("rewards", rewards), ("logps", batch["completion"].tolist())):
        for side, wanted in (("chosen", True), ("rejected", False)):
            metric = out.metrics[f"{figure}/{side}"]
            of_side = [value for value, label in zip(values, labels, strict=True) if label == wanted]
            assert float(metric.total / metric.weight) == pytest.approx(sum(of_side) / len(of_side), rel=1e-12)
            assert not metric.total.requires_grad


@pytest.mark.parametrize("desirable", [True, False])
def test_a_micro_batch_of_one_label_gives_the_other_no_weight(desirable):
    out = built()(**inputs(4, desirable=desirable))
    absent, present = ("rejected", "chosen") if desirable else ("chosen", "rejected")
    assert [float(out.metrics[f"{figure}/{absent}"].weight) for figure in ("rewards", "logps")] == [0, 0]
    assert [float(out.metrics[f"{figure}/{absent}"].total) for figure in ("rewards", "logps")] == [0, 0]
    assert float(out.metrics[f"rewards/{present}"].weight) == 4


@pytest.mark.parametrize("ratio", [3e4, -3e4])
@pytest.mark.parametrize("desirable", [True, False])
def test_extreme_ratios_have_finite_losses_and_gradients(ratio, desirable):
    completion = torch.tensor([ratio], requires_grad=True)
    out = built()(
        completion=completion, reference=torch.zeros(1), desirable=torch.tensor([desirable]), kl=torch.tensor(0.0)
    )
    out.loss_sum.backward()
    assert out.loss_sum.item() == pytest.approx(float((ratio > 0) != desirable), abs=1e-6)
    assert torch.isfinite(completion.grad).all()


@settings(max_examples=40)
@given(a=st.floats(-50, 50), b=st.floats(-50, 50), kl=st.floats(0, 20), desirable=st.booleans())
def test_a_better_row_never_costs_more(a, b, kl, desirable):
    def loss(ratio):
        one = torch.tensor([ratio], dtype=torch.float64)
        return built()(
            completion=one, reference=torch.zeros(1), desirable=torch.tensor([desirable]), kl=torch.tensor(kl)
        ).loss_sum.item()

    low, high = sorted((a, b))
    assert (loss(high) <= loss(low) + 1e-12) if desirable else (loss(low) <= loss(high) + 1e-12)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"desirable_weight": 0}, {"undesirable_weight": -1}, {"betta": 1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        RECORD.options(**wrong)
