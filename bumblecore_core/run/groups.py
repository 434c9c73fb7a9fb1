"""Parameter groups by kind: matrices take weight decay, norms and biases do not."""

from __future__ import annotations

import torch

from bumblecore_core.values import ParameterGroup


def parameter_groups(model: torch.nn.Module) -> list[ParameterGroup]:
    """The trainable parameters in up to two groups, `decay` and `no_decay`; an empty group is left out.

    No decay: weights of normalisation modules (by the module's class), biases, and every parameter of at most one
    dimension. Embeddings decay like any other matrix. A tied parameter appears once, in module order.
    """
    decay = ParameterGroup(name="decay", params=[], decay=True)
    no_decay = ParameterGroup(name="no_decay", params=[], decay=False)
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            group = no_decay if _is_norm(module) or name.endswith("bias") or parameter.ndim <= 1 else decay
            group.params.append(parameter)
    return [group for group in (decay, no_decay) if group.params]


def _is_norm(module: torch.nn.Module) -> bool:
    """`LayerNorm`, `Qwen3RMSNorm`, `GroupNorm`, …: the class name is all that norms of different models share."""
    return "norm" in type(module).__name__.lower()
