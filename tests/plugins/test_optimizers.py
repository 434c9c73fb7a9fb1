"""Optimizers against torch's own, built by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from bumblecore_core import ParameterGroup
from bumblecore_plugins.optimizers import bumble_optimizers

RECORDS = {record.name: record for record in bumble_optimizers()}


def groups() -> list[ParameterGroup]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.nn.Parameter(torch.randn(*shape, generator=generator))  # noqa: E731
    return [
        ParameterGroup(name="decay", params=[make(4, 3), make(3, 3)], decay=True),
        ParameterGroup(name="no_decay", params=[make(3)], decay=False, lr_scale=0.5),
    ]


def run(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: int = 3) -> None:
    for step in range(steps):
        for at, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(100 * step + at)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


TWINS = {
    "adamw": (
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.3},  # an epsilon that a float32 step shows
        lambda own: torch.optim.AdamW(own, lr=0.01, betas=(0.8, 0.95), eps=0.1),
    ),
    "sgd": (
        {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
        lambda own: torch.optim.SGD(own, lr=0.01, momentum=0.9, nesterov=True),
    ),
    "adafactor": (
        {"lr": 0.01, "beta2_decay": -0.5, "clip_threshold": 1.5, "weight_decay": 0.3},
        lambda own: torch.optim.Adafactor(own, lr=0.01, beta2_decay=-0.5, d=1.5),
    ),
}


@pytest.mark.parametrize("name", sorted(RECORDS))
@pytest.mark.parametrize("decay_all", [False, True])
def test_steps_as_torch_does(name, decay_all):
    options, twin = TWINS[name]
    ours, theirs = groups(), groups()
    record = RECORDS[name]
    optimizer = record.build(options=record.options(**options, decay_norm_and_bias=decay_all), groups=ours)
    reference = twin(
        [
            {"params": theirs[0].params, "lr": 0.01, "weight_decay": 0.3},
            {"params": theirs[1].params, "lr": 0.005, "weight_decay": 0.3 if decay_all else 0.0},
        ]
    )
    own = [parameter for group in ours for parameter in group.params]
    other = [parameter for group in theirs for parameter in group.params]
    run(optimizer, own)
    run(reference, other)
    for mine, reference_parameter in zip(own, other, strict=True):
        torch.testing.assert_close(mine, reference_parameter, rtol=1e-6, atol=1e-7)
    assert [group["name"] for group in optimizer.param_groups] == ["decay", "no_decay"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005]


def test_adamw_is_fused_and_its_defaults_are_those_of_fine_tuning():
    options = RECORDS["adamw"].options()
    optimizer = RECORDS["adamw"].build(options=options, groups=groups())
    assert optimizer.defaults["fused"] is True
    assert (options.lr, options.betas, options.eps, options.weight_decay) == (2e-5, (0.9, 0.999), 1e-8, 0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [("adamw", {"lr": 0}), ("adamw", {"betas": (0.9, 1.0)}), ("sgd", {"nesterov": True}), ("adamw", {"beta": 1})],
)
def test_wrong_options_are_refused(name, options):
    with pytest.raises(ValidationError):
        RECORDS[name].options(**options)


def test_every_option_is_described():
    for record in RECORDS.values():
        assert all(field.description for field in record.options.model_fields.values())
