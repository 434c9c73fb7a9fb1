"""PiSSA and OLoRA: A and B are taken out of the base weights, which while training are W − s·B₀A₀.

Files never depend on that: they hold an adapter of twice the rank for the untouched base, [A; A₀] and [B, −B₀], which
is the same update and which PEFT loads like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bumblecore_core import ConfigError, one
from bumblecore_core.toolkit.adapter_tensors import put_weights, read_weights

NAME = "default"
A, B = "lora_A", "lora_B"


@torch.no_grad()
def take_out_of_base(
    model: Any, layers: Mapping[str, Any], init: str, checkpoint: Path | None
) -> dict[str, torch.Tensor]:
    """Makes A and B from the base weight of each LoRA layer (or takes A₀ and B₀ from a checkpoint, so that no bit
    depends on a second decomposition), and takes s·B₀A₀ out of it. Returns A₀ and B₀ by the parameters' names.

    Raises `ConfigError` BC039 for a layer that is not linear.
    """
    odd = [name for name, layer in layers.items() if type(layer.get_base_layer()) is not torch.nn.Linear]
    if odd:
        problem = f"init {init} is for linear layers, and {odd[0]} is none"
        raise one(ConfigError, "BC039", problem, "Set init to default", field="adapter.init")
    saved = _halves(read_weights(checkpoint)) if checkpoint is not None else None
    if saved is not None:
        put_weights(model, saved[1], checkpoint)
    initial = {}
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        if saved is None:
            original = weight.data.clone()
            layer.olora_init(NAME) if init == "olora" else layer.pissa_init(NAME, init)
            weight.data = original
            for part in (layer.lora_A, layer.lora_B):
                part[NAME].weight.data = _exact_in_any_dtype(part[NAME].weight.data)
        taken = layer.get_delta_weight(NAME)
        weight.data = (weight.data.float() - taken.float()).to(weight.dtype)
        for side in (A, B):
            kept = getattr(layer, side)[NAME].weight.detach().clone()
            initial[f"{name}.{side}.{NAME}.weight"] = kept
    if saved is not None:
        put_weights(model, saved[0], checkpoint)
    return initial


def double(
    config: Any, tensors: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a file for the untouched base, by name in the file; sets `config` to twice the rank. `initial`: A₀
    and B₀ under the same names."""
    config.r *= 2
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
    config.init_lora_weights = True
    return {
        name: _doubled(name, tensor, initial[name].to(tensor)) if name in initial else tensor
        for name, tensor in tensors.items()
    }


def _exact_in_any_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded so that bf16, fp16 and float32 hold it alike: what is saved is then what was used."""
    return tensor.to(torch.bfloat16).to(torch.float16).float().contiguous()


def _doubled(name: str, tensor: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    if f".{A}." in name:
        return torch.cat([tensor, first], dim=0)
    return torch.cat([tensor, -first], dim=1)


def _halves(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(A and B, A₀ and B₀) of what `double` made; other tensors are in both."""
    now, first = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if f".{A}." in name:
            now[name], first[name] = tensor.chunk(2, dim=0)
        elif f".{B}." in name:
            now[name], other = tensor.chunk(2, dim=1)
            first[name] = -other
    return now, first
