"""What weights compute in, and the float32 copies that the optimizer steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from bumblecore_core import ConfigError, RunError, one

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
AMPERE = (8, 0)


def bf16_hardware(device: torch.device) -> str | None:
    """What gives `device` bf16 arithmetic in hardware, in words; None where it would be emulated."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return f"compute capability {capability[0]}.{capability[1]}" if capability >= AMPERE else None
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "AVX512-BF16"
    return "Arm BF16" if torch.cpu.get_capabilities().get("bf16") else None


def resolve_dtype(name: str, device: torch.device, *, master_weights: bool) -> tuple[torch.dtype, str]:
    """(dtype, why) for `auto`, `bf16`, `fp16` or `fp32`.

    Raises `RunError` BC041 for fp16 on a CPU, `ConfigError` BC039 for fp16 without float32 masters (Adam's epsilon of
    1e-8 is zero in fp16).
    """
    hardware = bf16_hardware(device)
    if name == "auto":
        if hardware is None:
            return torch.float32, f"the {device.type} has no bf16 arithmetic"
        return torch.bfloat16, f"the {device.type} has {hardware}"
    if name == "bf16" and hardware is None:
        return torch.bfloat16, f"as configured; emulated on this {device.type}, fp32 is likely faster"
    if name == "fp16" and device.type != "cuda":
        raise one(
            RunError,
            "BC041",
            f"fp16 needs a GPU; this run's device is the {device.type}",
            "Set model.dtype to auto, bf16 or fp32",
            field="model.dtype",
        )
    if name == "fp16" and not master_weights:
        raise one(
            ConfigError,
            "BC039",
            "fp16 cannot be trained without float32 masters",
            "Set model.master_weights to true, or model.dtype to bf16",
            field="model.dtype, model.master_weights",
        )
    return DTYPES[name], "as configured"


def cast(
    module: torch.nn.Module, dtype: torch.dtype, *, master_weights: bool, float32_gradients: bool
) -> dict[int, torch.nn.Parameter]:
    """Casts parameters in place to `dtype`; returns, by `id` of each trainable one, what the optimizer steps for it.

    That is the parameter itself where it computes in float32; else a float32 master taken *before* the cast, so that
    nothing of a float32 initialisation or checkpoint is rounded away. Without masters it is a parameter that shares the
    weight's memory (its `.grad` is then free to have the weight's dtype while the weight's own is float32).

    Buffers keep their dtype: rotary frequencies in half precision would shift positions. So do parameters that the
    model's class lists in `_keep_in_fp32_modules_strict`. A tied parameter is one object and is visited once.
    """
    kept = kept_in_float32(module)
    stepped = {}
    for name, parameter in module.named_parameters():
        full = parameter.data
        if full.is_floating_point():
            parameter.data = full.to(torch.float32 if kept is not None and kept.search(name) else dtype)
        if not parameter.requires_grad:
            continue
        half = parameter.dtype in (torch.bfloat16, torch.float16)
        if half and master_weights:
            stepped[id(parameter)] = torch.nn.Parameter(full.float())
        elif half and float32_gradients:
            stepped[id(parameter)] = torch.nn.Parameter(parameter.data)
        else:
            stepped[id(parameter)] = parameter
        if half and float32_gradients:
            parameter.grad_dtype = torch.float32
    return stepped


def frozen(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """`module` in evaluation mode on `device`, weights in `dtype` and without gradients; buffers keep their dtype."""
    module.requires_grad_(False)
    cast(module, dtype, master_weights=False, float32_gradients=False)
    return module.to(device).eval()


def kept_in_float32(module: torch.nn.Module) -> re.Pattern[str] | None:
    names = {name for part in module.modules() for name in (getattr(part, "_keep_in_fp32_modules_strict", None) or ())}
    return re.compile(r"(^|\.)(" + "|".join(map(re.escape, sorted(names))) + r")(\.|$)") if names else None


@dataclass(kw_only=True)
class LossScale:
    """The dynamic loss scale of fp16 training (Micikevicius et al. 2018, "Mixed Precision Training").

    Starts at 2^16, halves after a step whose gradients overflowed, doubles after `interval` good ones. Two numbers of
    plain Python rather than `torch.amp.GradScaler`: the engine folds unscaling into its one multiplication of the
    gradients and knows from their norm whether they are finite, which the scaler would each do in a pass of its own.
    """

    value: float = 65536.0
    good_steps: int = 0
    interval: int = 2000

    def update(self, *, overflowed: bool) -> None:
        """Takes notice of one optimizer step."""
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.value = max(1.0, self.value / 2)
        elif self.good_steps == self.interval:
            self.value, self.good_steps = self.value * 2, 0
