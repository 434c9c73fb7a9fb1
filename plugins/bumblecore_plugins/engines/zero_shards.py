"""Weights on their devices: of ZeRO-3 spread over the ranks one module at a time, and brought together again one weight
at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from bumblecore_plugins.engines.distributed import same_on_all_ranks


def place(
    module: torch.nn.Module,
    names: Mapping[int, str],
    *,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    rank: int,
    world_size: int,
) -> dict[str, torch.Tensor]:
    """Puts the weights on the device in the compute dtype, of ZeRO-3 each rank's part. Returns the float32 values that
    this rounded, flat, by the `names` of the weights' ids: whole ones, of ZeRO-3 this rank's part. A collective."""
    if config["zero_optimization"]["stage"] == 3:
        found = spread(module, config=config, dtype=dtype, device=device, rank=rank, world_size=world_size)
        return {names[key]: values for key, values in found.items()}
    module.to(device)
    same_on_all_ranks(module)
    masters = {}
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            if parameter.requires_grad:
                masters[names[id(parameter)]] = parameter.data.float().flatten()
            parameter.data = parameter.data.to(dtype)
    return masters


def spread(
    module: torch.nn.Module,
    *,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    rank: int,
    world_size: int,
) -> dict[int, torch.Tensor]:
    """Leaves to each rank its part of each parameter, in `dtype`. Returns, by `id` of each trainable parameter whose
    values `dtype` would round, this rank's part of them in float32. A collective.

    Rank 0 holds the weights; the other ranks hold parameters of the same shapes without memory behind them
    (`run.skeleton`), and never more of the model than their parts and the module that is on its way.
    """
    import deepspeed

    masters: dict[int, torch.Tensor] = {}
    swapper = None  # of weights that go to disk: one for all of them
    for part in reversed(list(module.modules())):  # children first: what has been spread already is left alone
        own = [one for one in part.parameters(recurse=False) if not hasattr(one, "ds_id")]
        if not own:
            continue
        exact = [one for one in own if one.requires_grad and one.dtype != dtype]
        for parameter in own:
            whole = _from_rank_0(parameter, device, rank)
            if any(parameter is one for one in exact):
                size = -(-whole.numel() // world_size)
                masters[id(parameter)] = whole.flatten()[rank * size : (rank + 1) * size].float().clone()
            parameter.data = whole.to(dtype) if whole.is_floating_point() else whole
        made = deepspeed.zero.Init(
            module=part,
            config_dict_or_path=dict(config),
            dtype=dtype,
            mem_efficient_linear=False,
            param_swapper=swapper,
        )
        swapper = made.param_swapper
    for buffer in module.buffers():
        dist.broadcast(buffer.data, src=0)
    return masters


def gathered(
    model: torch.nn.Module, *, rank: int, wanted: Callable[[str], bool] | None = None
) -> dict[str, torch.Tensor]:
    """The weights and saved buffers of `model` in the CPU's memory of rank 0, under their names; empty on other ranks.

    Tied weights are gathered once and share their tensor. A collective; beside the result no more than one weight is
    ever whole.
    """
    import deepspeed

    found: dict[str, torch.Tensor] = {}
    once: dict[int, torch.Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        if wanted is not None and not wanted(name):
            continue
        if id(parameter) not in once:
            with deepspeed.zero.GatheredParameters([parameter]):
                once[id(parameter)] = parameter.detach().to("cpu", copy=True) if rank == 0 else torch.empty(0)
        found[name] = once[id(parameter)]
    if rank != 0:
        return {}
    for name, tensor in model.state_dict().items():
        if name not in parameters and (wanted is None or wanted(name)):
            found[name] = tensor.detach().to("cpu", copy=True)
    return found


def _from_rank_0(parameter: torch.nn.Parameter, device: torch.device, rank: int) -> torch.Tensor:
    data = parameter.data
    whole = data.to(device).contiguous() if rank == 0 else torch.empty(data.shape, dtype=data.dtype, device=device)
    dist.broadcast(whole, src=0)
    return whole
