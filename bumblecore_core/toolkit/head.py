"""The head of a causal language model as data: weight, bias, scale and soft cap, read from the model and its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bumblecore_core.toolkit.shards import gathers_weights
from bumblecore_core.toolkit.vision_language import text_backbone, without_adapter

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
MODULE_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head as data: `soft_cap · tanh(scale · (hidden @ weightᵀ + bias) / soft_cap)`, uncapped where that is None.

    `weight`: (V, H) parameter, or None where `hidden` already holds logits; `bias`: (V,) or None.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, V) logits of (N, H) hidden states, in the weight's dtype (or `hidden` itself without a weight)."""
        if self.weight is None:
            return hidden
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits


def read_head(inner: Any) -> Head | str:
    """The head as data, read on each call since a parameter may be replaced; or why it cannot be described."""
    linear = inner.get_output_embeddings()
    if type(linear) is not torch.nn.Linear:
        return f"its output layer is a {type(linear).__name__}, not a plain Linear"
    hooks = [hook for kind in MODULE_CALL_HOOKS for hook in getattr(linear, kind).values()]
    if not all(map(gathers_weights, hooks)) or "forward" in vars(linear):
        return "its output layer has hooks"
    config = inner.config.get_text_config()
    scale = 1.0
    for name in MULTIPLIERS:
        scale *= _number(config, name) or 1.0
    for name in DIVISORS:
        scale /= _number(config, name) or 1.0
    caps = [cap for name in SOFT_CAPS if (cap := _number(config, name)) is not None]
    return Head(weight=linear.weight, bias=linear.bias, scale=scale, soft_cap=caps[0] if caps else None)


def head_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Weight and bias of a head that is read as data; empty for one that is only ever called."""
    linear = without_adapter(model).get_output_embeddings()
    return list(linear.parameters()) if type(linear) is torch.nn.Linear else []


def backbone_of(inner: Any) -> torch.nn.Module | None:
    """The module whose output is the last hidden state, or None where the model has no such part."""
    for found in (
        text_backbone(inner),
        getattr(inner, inner.base_model_prefix, None) if inner.base_model_prefix else None,
        inner.get_decoder(),
        getattr(inner, "model", None),  # where the class names another prefix (Llama 4)
    ):
        if isinstance(found, torch.nn.Module) and found is not inner:
            return found
    return None


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
