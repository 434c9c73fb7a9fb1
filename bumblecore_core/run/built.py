"""What a plugin's `build` or `load` returned, held to its kind's contract before anything else uses it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bumblecore_core.protocols import AttentionFunctions
from bumblecore_core.registry.validate import typename
from bumblecore_core.run.blame import Plugin, blamed, breach
from bumblecore_core.toolkit.state_files import unsavable
from bumblecore_core.values import ParameterGroup

METHODS: Mapping[str, tuple[str, ...]] = {
    "stages": ("encode", "collate", "step", "preview"),
    "data_formats": ("convert",),
    "adapters": ("wrap", "describe", "lr_scale", "saves", "base_policy", "save", "merge"),
    "loggers": ("start", "step", "saved", "finish"),
    "engines": (
        *("features", "prepare", "call", "frozen", "forward_backward", "step", "advance_schedule", "learning_rates"),
        *("evaluate", "sum_over_ranks", "barrier", "model_state", "training_state", "load_training_state", "close"),
    ),
}
"""The methods that the core calls, by kind."""
PROTOCOLS = {
    "stages": "Stage",
    "data_formats": "DataFormat",
    "adapters": "Adapter",
    "loggers": "Logger",
    "engines": "Engine",
}
ENGINE_ATTRIBUTES: Mapping[str, type] = {
    "rank": int,
    "world_size": int,
    "device": torch.device,
    "dtype": torch.dtype,
    "holds_model": bool,
    "background_saving": bool,
}
PLAUSIBLE_RATE = 1.0
"""A learning rate up to which no step that is in proportion to it overflows a float32: beyond, the rate may be why."""
WANTS_OPTIMIZER = "An optimizer's build returns a torch.optim.Optimizer that holds each parameter of its groups once"
WANTS_SCHEDULER = "A scheduler's build returns an LRScheduler or a ReduceLROnPlateau of the optimizer that it is passed"
WANTS_ATTENTION = "An attention's load returns AttentionFunctions(forward=…, mask=…)"


def check_built(plugin: Plugin, built: Any) -> None:
    """Raises `PluginError` BC060 unless what a record's `build` returned has what the core uses of its kind."""
    if plugin.kind == "losses":
        if not callable(built):
            raise breach(plugin, f"built {typename(built)}", "A loss's build returns a callable")
        return
    if plugin.kind not in METHODS:  # optimizers and schedulers have checks of their own
        return
    missing = [name for name in METHODS[plugin.kind] if not callable(getattr(built, name, None))]
    fault = f"built {typename(built)} without {_listed(missing)}" if missing else ""
    if not fault and plugin.kind == "stages":
        fault = _columns_fault(getattr(built, "columns", None))
    if not fault and plugin.kind == "engines":
        fault = _engine_fault(built)
    if fault:
        wants = f"The contract is bumblecore_core.protocols.{PROTOCOLS[plugin.kind]}"
        raise breach(plugin, fault, wants)


def check_optimizer(plugin: Plugin, optimizer: Any, groups: Sequence[ParameterGroup]) -> None:
    """Raises `PluginError` BC060 unless `optimizer` steps exactly the parameters of `groups`, each at a rate."""
    fault = _optimizer_fault(optimizer, groups)
    if fault:
        raise breach(plugin, fault, WANTS_OPTIMIZER)


def check_scheduler(plugin: Plugin, scheduler: Any, optimizer: torch.optim.Optimizer, *, needs_metric: bool) -> None:
    """Raises `PluginError` BC060 unless `scheduler` is torch's, is the given optimizer's, and can be saved."""
    fault = None
    if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
        fault = f"built {typename(scheduler)}"
    elif scheduler.optimizer is not optimizer:
        fault = "built a schedule of another optimizer"
    elif isinstance(scheduler, ReduceLROnPlateau) and not needs_metric:
        fault = "built a ReduceLROnPlateau, which steps on evaluation losses, and its record lacks needs_metric=True"
    else:
        with blamed(plugin):
            state = scheduler.state_dict()
        fault = _state_fault(state)
    if fault:
        raise breach(plugin, fault, WANTS_SCHEDULER)


def check_first_step(plugin: Plugin, optimizer: torch.optim.Optimizer) -> None:
    """What an optimizer's first step left behind: raises `PluginError` BC060 where weights are not finite, though
    gradients were (engines step on no others), and where its state cannot be saved, hours before a checkpoint would."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    if rate <= PLAUSIBLE_RATE and not all(finite(parameter.detach()) for parameter in parameters if parameter.numel()):
        wants = "A step from finite weights and gradients leaves finite weights"
        raise breach(plugin, "wrote weights that are not finite in its first step", wants)
    # not state_dict(), which looks each parameter up in the groups: DeepSpeed puts others there while it steps
    if fault := _state_fault(list(optimizer.state.values())):
        raise breach(plugin, fault, "Its state holds tensors, numbers and text")


def check_attention(plugin: Plugin, functions: Any) -> None:
    """Raises `PluginError` BC060 unless `load` returned `AttentionFunctions` of callables."""
    if not isinstance(functions, AttentionFunctions):
        raise breach(plugin, f"loaded {typename(functions)}", WANTS_ATTENTION)
    for name in ("forward", "mask"):
        value = getattr(functions, name)
        if value is not None and not callable(value):
            raise breach(plugin, f"loaded {typename(value)} as {name}", WANTS_ATTENTION)


def check_unsupported(plugin: Plugin, reason: Any) -> None:
    """Raises `PluginError` BC060 unless an attention's `unsupported` returned text or None."""
    if reason is not None and not isinstance(reason, str):
        wants = "`unsupported` returns None where it can run, or why it cannot"
        raise breach(plugin, f"returned {typename(reason)} from unsupported", wants)


def finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, by one pass without a copy: the largest magnitude is NaN or infinite if one is."""
    return not tensor.is_floating_point() or math.isfinite(float(torch.linalg.vector_norm(tensor, ord=math.inf)))


def _columns_fault(columns: Any) -> str:
    names = isinstance(columns, tuple | list) and columns and all(isinstance(name, str) for name in columns)
    return "" if names else f"has {columns!r} as columns, not a tuple of names"


def _engine_fault(engine: Any) -> str:
    for name, expected in ENGINE_ATTRIBUTES.items():
        value = getattr(engine, name, None)
        if not isinstance(value, expected):
            return f"has {typename(value)} as {name}, not a {expected.__name__}"
    rank_exists = 0 <= engine.rank < engine.world_size
    return "" if rank_exists else f"says that it is rank {engine.rank} of {engine.world_size}"


def _optimizer_fault(optimizer: Any, groups: Sequence[ParameterGroup]) -> str | None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        return f"built {typename(optimizer)}"
    given = {id(parameter): group.name for group in groups for parameter in group.params}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    if missing := set(given) - set(held):
        names = sorted({given[key] for key in missing})
        return f"holds {len(given) - len(missing)} of {len(given)} parameters: it lacks some of {', '.join(names)}"
    if set(held) - set(given) or len(held) != len(given):
        return f"holds {len(held)} parameters of which the run trains {len(given)}"
    for group in optimizer.param_groups:
        rate = group.get("lr")
        number = float(rate) if isinstance(rate, Real | torch.Tensor) else math.nan
        if not math.isfinite(number) or number < 0:
            return f"has the learning rate {rate!r} in the group {group.get('name', '?')}"
    return None


def _state_fault(state: Any) -> str | None:
    what = unsavable(state)
    return f"keeps {what}, which a checkpoint cannot hold" if what else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
