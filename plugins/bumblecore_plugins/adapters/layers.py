"""Layers that LoRA can adapt, and those of them on which it has an effect."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch

from bumblecore_core.toolkit.scorers import score_of
from bumblecore_core.toolkit.vision_language import tower_pattern

READ = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape))")
"""A weight that a method uses itself, rather than calling the layer."""


def text_modules(model: Any) -> dict[str, torch.nn.Module]:
    """The modules by name, without those that text does not reach, such as a vision tower, which stays frozen."""
    pattern = re.compile(tower_pattern(model) or "")
    return {name: module for name, module in model.named_modules() if not (name and pattern.fullmatch(name))}


def linear_targets(model: Any) -> dict[str, torch.nn.Module]:
    """The layers that `all-linear` means, by name: every linear layer but the output head and a reward model's score.

    Left out are layers on which LoRA would break the model or have no effect: subclasses of Linear that return more
    than a product (routers that also choose experts), layers whose weight a fused kernel reads, and the indexers of
    sparse attention, whose choice has no gradient. So are towers that text does not reach.
    """
    from transformers.pytorch_utils import Conv1D

    ends = [model.get_output_embeddings(), score_of(model)]
    return {
        name: module
        for name, module in text_modules(model).items()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and not any(module is end for end in ends)
        and is_adaptable(module)
        and not reads_weight(model, name)
        and not _in_indexer(model, name)
    }


def is_adaptable(module: torch.nn.Module) -> bool:
    """Whether PEFT's LoRA can stand in for the module's forward pass."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return _is_product(module)
    return isinstance(module, torch.nn.Embedding | Conv1D | torch.nn.Conv1d | torch.nn.Conv2d)


def reads_weight(model: Any, name: str) -> bool:
    """Whether the module that holds the layer `name` reads its weight instead of calling it: then LoRA has no effect.
    State-space mixers do, in the fused kernels that they use on a GPU, if not everywhere."""
    holder, _, own = name.rpartition(".")
    mixer = model.get_submodule(holder)
    # Other models read weights in branches that are not taken, such as bloom's for tensor parallelism.
    return hasattr(mixer, "A_log") and own in _read_weights(type(mixer))


def short_name(name: str) -> str:
    """A module's or parameter's name within its layer."""
    return re.split(r"\.\d+\.", name)[-1]


@cache
def _read_weights(kind: type) -> frozenset[str]:
    try:
        sources = [inspect.getsource(part) for part in kind.__mro__ if part not in torch.nn.Module.__mro__]
    except (OSError, TypeError):  # made at run time
        return frozenset()
    return frozenset(name for source in sources for name in READ.findall(source))


def _is_product(module: torch.nn.Linear) -> bool:
    """Whether a linear layer, or one of a subclass, maps (1, in) to (1, out)."""
    if type(module).forward is torch.nn.Linear.forward:
        return True
    weight = module.weight
    if weight.dim() != 2:  # a part of it alone is here
        return False
    with torch.no_grad():
        try:
            found = module(torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device))
        except Exception:
            return False
    return isinstance(found, torch.Tensor) and tuple(found.shape) == (1, module.out_features)


def _in_indexer(model: Any, name: str) -> bool:
    parts = name.split(".")[:-1]
    holders = (model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts) + 1))
    return any(type(holder).__name__.endswith("Indexer") for holder in holders)
