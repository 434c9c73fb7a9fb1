"""Built-in optimizers. Weight decay applies to the groups that ask for it: not to norms and biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from bumblecore_core import OptimizerRecord, Options, ParameterGroup, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_NO_DECAY = "Decay biases and norm weights as well."


class AdamWOptions(Options):
    """Options of `adamw` (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization")."""

    lr: float = Field(2e-5, gt=0, description="Learning rate at its peak.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay rates of the gradient's two moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay of weight matrices.")
    decay_norm_and_bias: bool = Field(False, description=_NO_DECAY)

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each must be at least 0 and below 1")
        return betas


class SgdOptions(Options):
    """Options of `sgd`."""

    lr: float = Field(1e-2, gt=0, description="Learning rate at its peak.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum; 0: plain gradient descent, without any state.")
    nesterov: bool = Field(False, description="Nesterov's momentum (needs momentum above 0).")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on weight matrices, added to their gradient.")
    decay_norm_and_bias: bool = Field(False, description=_NO_DECAY)

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, nesterov: bool, info: Any) -> bool:
        if nesterov and not info.data.get("momentum"):
            raise ValueError("conflict: nesterov needs momentum above 0")
        return nesterov


class AdafactorOptions(Options):
    """Options of `adafactor` (Shazeer and Stern 2018): the second moment of a matrix as a row and a column."""

    lr: float = Field(1e-2, gt=0, description="Learning rate at its peak, relative to each parameter's scale.")
    beta2_decay: float = Field(-0.8, lt=0, description="Exponent of the second moment's decay over steps.")
    clip_threshold: float = Field(1.0, ge=1, description="Largest root mean square of one update.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of weight matrices.")
    decay_norm_and_bias: bool = Field(False, description=_NO_DECAY)


def _adamw(*, options: AdamWOptions, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    import torch

    # One pass over memory per step: fused exists for CPU and CUDA, while foreach does not cover the CPU.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group.params)
    return torch.optim.AdamW(
        _torch_groups(options, groups),
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=fused,
    )


def _sgd(*, options: SgdOptions, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    import torch

    return torch.optim.SGD(
        _torch_groups(options, groups),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
    )


def _adafactor(*, options: AdafactorOptions, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    import torch

    return torch.optim.Adafactor(
        _torch_groups(options, groups),
        lr=options.lr,
        beta2_decay=options.beta2_decay,
        d=options.clip_threshold,
        weight_decay=options.weight_decay,
    )


def _torch_groups(options: Any, groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """torch's parameter groups, in the given order and under the given names."""
    return [
        {
            "params": group.params,
            "name": group.name,
            "lr": options.lr * group.lr_scale,
            "weight_decay": options.weight_decay if group.decay or options.decay_norm_and_bias else 0.0,
        }
        for group in groups
    ]


@hookimpl
def bumble_optimizers():
    """AdamW, and two that need less memory."""
    return [
        OptimizerRecord(name="adamw", summary="AdamW, fused on CPU and CUDA.", build=_adamw, options=AdamWOptions),
        OptimizerRecord(name="sgd", summary="Gradient descent, with momentum.", build=_sgd, options=SgdOptions),
        OptimizerRecord(
            name="adafactor",
            summary="Adafactor: sublinear state, for models that barely fit.",
            build=_adafactor,
            options=AdafactorOptions,
        ),
    ]
