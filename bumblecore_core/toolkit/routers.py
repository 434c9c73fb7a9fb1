"""Routers of a mixture of experts: their logits in a forward pass, the load of each expert, and the auxiliary loss."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bumblecore_core.toolkit.passes import in_dummy_pass

RECORDED = "router_logits"
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]
"""Of transformers' `load_balancing_loss_func`; a function with other parameters computes something else."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """A module that scores the experts of one layer."""

    module: torch.nn.Module
    index: int
    """Position of the logits among the module's outputs."""


@dataclass(frozen=True, kw_only=True)
class AuxiliaryLoss:
    """The load-balancing loss of a model type, computed by transformers' own function."""

    function: Callable[..., torch.Tensor]
    experts: int
    top_k: int

    def __call__(self, logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The scalar loss of all layers' router logits, (T, experts) each, without a coefficient."""
        return self.function(logits, self.experts, self.top_k)


class Routing:
    """What the routers computed in the forward passes of one micro-batch. Several passes count as one."""

    def __init__(self, routers: Sequence[Router]) -> None:
        self._with_gradient = torch.is_grad_enabled()
        self._outputs: list[list[tuple[torch.Tensor, torch.Tensor | None]]] = [[] for _ in routers]

    def hook(self, at: int, index: int) -> Callable[..., None]:
        """A forward hook for router number `at`, whose logits are output number `index`."""

        def record(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if torch.is_grad_enabled() != self._with_gradient:
                return  # a pass that the stage does not train on, such as an estimate without gradients
            if in_dummy_pass():
                return
            parts = output if isinstance(output, tuple) else (output,)
            logits = parts[index if isinstance(output, tuple) else 0]
            self._outputs[at].append((logits, _selection(parts, logits)))

        return record

    def logits(self) -> tuple[torch.Tensor, ...]:
        """The logits of each router that was called, (T, experts), the passes concatenated."""
        return tuple(_joined([logits for logits, _ in calls]) for calls in self._outputs if calls)

    def assignments(self, top_k: int | None) -> torch.Tensor | None:
        """(layers, experts) int64: the number of tokens × top-k assignments of each expert in each layer.

        They are the router's own where it returns them, else the `top_k` largest logits. None where neither is known or
        layers differ in the number of experts.
        """
        counts = [_count(calls, top_k) for calls in self._outputs if calls]
        known = [count for count in counts if count is not None]
        if not known or len(known) < len(counts) or len({count.shape for count in known}) > 1:
            return None
        return torch.stack([count.to(known[0].device) for count in known])


@contextmanager
def recorded(routers: Sequence[Router]) -> Iterator[Routing]:
    """Records what `routers` compute inside the context. Gradient checkpointing recomputes a forward pass in the
    backward pass, which is outside."""
    routing = Routing(routers)
    handles = [router.module.register_forward_hook(routing.hook(at, router.index)) for at, router in enumerate(routers)]
    try:
        yield routing
    finally:
        for handle in handles:
            handle.remove()


def find_routers(model: torch.nn.Module) -> tuple[Router, ...]:
    """The modules that a transformers model, PEFT-wrapped or not, declares for `output_router_logits`, in module
    order."""
    from transformers import PreTrainedModel

    found: dict[int, Router] = {}
    for part in model.modules():
        if not isinstance(part, PreTrainedModel):
            continue
        for target, index, place in _declared(part):
            for name, module in part.named_modules():
                if isinstance(module, target) and (place is None or f".{place}." in f".{name}."):
                    found.setdefault(id(module), Router(module=module, index=index))
    return tuple(found.values())


def find_auxiliary_loss(model: Any) -> AuxiliaryLoss | None:
    """The load-balancing loss that transformers defines for this model type; None where it defines none."""
    function = getattr(sys.modules.get(type(model).__module__), "load_balancing_loss_func", None)
    if function is None or list(inspect.signature(function).parameters) != PARAMETERS:
        return None
    experts, top_k = (_whole_number(model, name) for name in ("num_experts", "num_experts_per_tok"))
    if experts is None or top_k is None:
        return None
    return AuxiliaryLoss(function=function, experts=experts, top_k=top_k)


def experts_per_token(model: Any) -> int | None:
    """The number of experts that a token passes through in each layer; None where the model does not state it."""
    return _whole_number(model, "num_experts_per_tok")


def stated_coefficient(model: Any) -> float | None:
    """What the model multiplies its auxiliary loss by; None where it does not state it."""
    values = [_stated(model, name) for name in COEFFICIENTS]
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def _declared(part: Any) -> Iterator[tuple[type[torch.nn.Module], int, str | None]]:
    """(class, position of the logits, part of the module's name or None) of the routers that a model class declares."""
    declared = part.can_record_outputs.get(RECORDED, [])
    for entry in declared if isinstance(declared, list) else [declared]:
        if isinstance(entry, type):
            yield entry, 1, None
        elif isinstance(target := getattr(entry, "target_class", None), type):
            yield target, entry.index, entry.layer_name


def _selection(parts: Sequence[Any], logits: torch.Tensor) -> torch.Tensor | None:
    """(T, k) int64: the experts that the router selected, where they are among its outputs."""
    tokens = logits.numel() // logits.shape[-1]
    for part in parts:
        whole = isinstance(part, torch.Tensor) and not part.is_floating_point() and part.dtype != torch.bool
        if whole and part.ndim > 1 and part.numel() == tokens * part.shape[-1]:
            selection: torch.Tensor = part.reshape(tokens, -1)
            return selection
    return None


def _joined(passes: Sequence[torch.Tensor]) -> torch.Tensor:
    return passes[0] if len(passes) == 1 else torch.cat(list(passes), dim=0)


def _count(calls: Sequence[tuple[torch.Tensor, torch.Tensor | None]], top_k: int | None) -> torch.Tensor | None:
    """(experts,) assignments of one layer's calls; None where they are not known."""
    first, _ = calls[0]
    count = torch.zeros(first.shape[-1], dtype=torch.int64, device=first.device)
    for logits, selection in calls:
        if selection is None:
            if top_k is None or logits.ndim != 2:  # Doge's logits are of product keys, not of experts
                return None
            selection = logits.topk(top_k, dim=-1).indices
        chosen = selection.flatten().long()
        count.scatter_add_(0, chosen, torch.ones_like(chosen))  # bincount would synchronize with the GPU
    return count


def _whole_number(model: Any, name: str) -> int | None:
    value = _stated(model, name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _stated(model: Any, name: str) -> Any:
    """An attribute of the model, as its own forward reads it, or of its text configuration."""
    for owner in (model, model.config.get_text_config()):
        try:
            value = getattr(owner, name, None)
        except RuntimeError:  # transformers, of a value that differs between layers
            continue
        if value is not None:
            return value
    return None
