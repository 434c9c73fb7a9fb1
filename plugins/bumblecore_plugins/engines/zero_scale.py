"""Scaling the gradients that DeepSpeed's optimizers hold between the backward passes and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def loss_scaler(optimizer: Any) -> Any:
    """What holds an optimizer's loss scale as `cur_scale`; None for bf16 at stage 1, which has none."""
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)


@contextmanager
def scaled_gradients(optimizer: Any, trained: Sequence[torch.nn.Parameter], factor: float) -> Iterator[None]:
    """Has the step inside take gradients `factor` times as large; one that is not finite has it skip them.

    The optimizers of stages 1 to 3 divide by their loss scale when they step, which saves going over their buffers: the
    scale is another for the step's duration. Stage 0's takes the norm of what is not divided yet.
    """
    scaler = loss_scaler(optimizer) if hasattr(optimizer, "averaged_gradients") else None
    if factor == 1.0:
        yield
    elif scaler is None or not math.isfinite(factor):
        gradients = _gradients(optimizer, trained)
        for gradient in gradients:
            gradient.mul_(factor)
        optimizer.local_overflow = not math.isfinite(factor)  # what optimizers with offload look at
        yield
        for gradient in gradients:
            gradient.zero_()  # a buffer of a weight that the next window does not use is not written anew
    else:
        before = scaler.cur_scale
        scaler.cur_scale = before / factor
        yield
        scaler.cur_scale = before if scaler.cur_scale == before / factor else scaler.cur_scale * factor


def _gradients(optimizer: Any, trained: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    if hasattr(optimizer, "fp32_groups_gradients_flat"):
        return list(optimizer.fp32_groups_gradients_flat)
    averaged = getattr(optimizer, "averaged_gradients", None)
    if averaged is None:
        return [parameter.grad for parameter in trained if parameter.grad is not None]
    return [gradient for group in averaged.values() for gradient in group or () if gradient is not None]
