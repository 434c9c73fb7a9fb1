"""Parameter groups by kind: matrices take weight decay, norms and biases do not."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bumblecore_core.values import ParameterGroup


def parameter_groups(
    model: torch.nn.Module, lr_scale: Callable[[str], float] = lambda name: 1.0
) -> list[ParameterGroup]:
    """The trainable parameters in the groups `decay` and `no_decay`; an empty group is left out.

    No decay: weights of normalisation modules (by the module's class), biases, and every parameter of at most one
    dimension. Embeddings decay like any other matrix. A tied parameter appears once, in module order. Parameters whose
    `lr_scale` (by name) is not 1 are in groups of their own, such as `decay_x16`.
    """
    groups: dict[tuple[float, bool], ParameterGroup] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decay = not (_is_norm(module) or name.endswith("bias") or parameter.ndim <= 1)
            scale = lr_scale(f"{path}.{name}" if path else name)
            if (scale, decay) not in groups:
                groups[scale, decay] = ParameterGroup(
                    name=("decay" if decay else "no_decay") + (f"_x{scale:g}" if scale != 1 else ""),
                    params=[],
                    decay=decay,
                    lr_scale=scale,
                )
            groups[scale, decay].params.append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0] != 1, key[0], not key[1]))]


def _is_norm(module: torch.nn.Module) -> bool:
    """`LayerNorm`, `Qwen3RMSNorm`, `GroupNorm`, …: the class name is all that norms of different models share."""
    return "norm" in type(module).__name__.lower()
