"""Scaling the gradients that DeepSpeed's optimizers hold between the backward passes and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bumblecore_plugins.engines.zero_nvme import swapped


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
        if not math.isfinite(factor):  # what optimizers with offload look at, of stages 1 and 2 and of stage 3
            optimizer.local_overflow = True
            norms = getattr(optimizer, "norm_for_param_grads", {})
            norms.update(dict.fromkeys(norms, math.nan))
        yield
    else:
        before = scaler.cur_scale
        scaler.cur_scale = before / factor
        yield
        scaler.cur_scale = before if scaler.cur_scale == before / factor else scaler.cur_scale * factor


def forget_gradients(optimizer: Any) -> None:
    """For after a step: what DeepSpeed keeps of a window's gradients would be added to those of a weight that the next
    window does not use, or uses in its second micro-batch only, or (with offload) after a step that was skipped."""
    stage_3 = hasattr(optimizer, "grad_partitions_flat_buffer")
    kept = [optimizer.grad_partitions_flat_buffer] if stage_3 else []
    if getattr(optimizer, "offload_optimizer" if stage_3 else "cpu_offload", False):
        owners = optimizer.fp32_partitioned_groups_flat if stage_3 else optimizer.single_partition_of_fp32_groups
        kept += [owner.grad for owner in owners if owner.grad is not None]
        if not stage_3:
            kept += optimizer.accumulated_grads_in_cpu.values()
            optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)
    for gradient in kept:
        gradient.zero_()


def complete_gradients(optimizer: Any) -> None:
    """For before a step with offload, where DeepSpeed hands on the gradients of the window's last micro-batch's weights
    alone: those of weights that only earlier ones used go the same way, and on disk, where the last window's lie, those
    of weights that none used are zeros."""
    if getattr(optimizer, "cpu_offload", False):
        if optimizer._offload_accumulated_param_ids - optimizer.norm_for_param_grads.keys():
            optimizer._finalize_cpu_offload_gradient_accumulation()
        return
    if not getattr(optimizer, "offload_optimizer", False):
        return
    weights = [one for group in optimizer.fp16_groups for one in group]
    handed_on, used = optimizer.norm_for_param_grads, optimizer._offload_boundary_param_ids
    if any(one.ds_id in used and optimizer.get_param_id(one) not in handed_on for one in weights):
        optimizer._finalize_offload_gradient_accumulation()
    for weight in weights if optimizer.swap_optimizer else ():
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(weight)]
        owner = optimizer.fp32_partitioned_groups_flat[group]
        if weight.ds_id not in used and swapped(optimizer, owner):
            zeros = [torch.zeros(weight.partition_numel())]
            optimizer.optimizer_swapper.swap_out_gradients(
                parameter=owner, gradient_offsets=[offset], gradient_tensors=zeros
            )


def _gradients(optimizer: Any, trained: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    if hasattr(optimizer, "fp32_groups_gradients_flat"):
        return list(optimizer.fp32_groups_gradients_flat)
    averaged = getattr(optimizer, "averaged_gradients", None)
    if averaged is None:
        return [parameter.grad for parameter in trained if parameter.grad is not None]
    return [gradient for group in averaged.values() for gradient in group or () if gradient is not None]
