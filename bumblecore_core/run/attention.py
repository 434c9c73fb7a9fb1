"""The attention implementations that can serve a run, and their registration with transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import ConfigError, PluginError, did_you_mean, one
from bumblecore_core.records import AttentionRecord
from bumblecore_core.registry.validate import typename
from bumblecore_core.run.blame import Plugin, blamed, breach, passes, raised
from bumblecore_core.run.built import check_attention, check_unsupported

if TYPE_CHECKING:
    import torch

PREFIX = "bumble_"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An attention that may serve a run."""

    record: AttentionRecord
    unsupported: str | None
    """Why it cannot run on the run's device in its dtype, or None."""


def candidates(
    records: Sequence[AttentionRecord], name: str, *, device: torch.device, dtype: torch.dtype
) -> list[Candidate]:
    """The attention called `name`, or for `auto` all of them, the highest priority first.

    Raises `PluginError` BC056 for an unknown name and `ConfigError` BC039 where none runs on `device` in `dtype`.
    """
    found = [
        Candidate(record=record, unsupported=unsupported(record, device, dtype)) for record in _named(records, name)
    ]
    if any(candidate.unsupported is None for candidate in found):
        return found
    reasons = "; ".join(f"not {candidate.record.name}: {candidate.unsupported}" for candidate in found)
    where = f"on {device.type} in {str(dtype).removeprefix('torch.')}"
    problem = f"attention {name} cannot run {where} ({reasons or 'no attention plugin is installed'})"
    raise one(
        ConfigError, "BC039", problem, "Set model.attention to auto, or change model.dtype", field="model.attention"
    )


def unsupported(record: AttentionRecord, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an attention cannot run on `device` in `dtype`, or None where it can."""
    plugin = Plugin.of(record)
    with blamed(plugin):
        reason = record.unsupported(device=device, dtype=dtype)
    check_unsupported(plugin, reason)
    return reason


def _named(records: Sequence[AttentionRecord], name: str) -> list[AttentionRecord]:
    if name == "auto":
        return sorted(records, key=lambda record: (-record.priority, record.name))
    named = [record for record in records if record.name == name]
    if not named:
        names = ["auto", *(record.name for record in records)]
        raise one(
            PluginError,
            "BC056",
            f"no attention plugin is called '{name}'",
            did_you_mean(name, names),
            field="model.attention",
        )
    return named


def register(record: AttentionRecord) -> str:
    """The name under which transformers finds an attention; one with functions of its own becomes `bumble_<name>`."""
    plugin = Plugin.of(record)
    with blamed(plugin):
        functions = record.load()
    check_attention(plugin, functions)
    if functions.forward is None:
        return record.name
    from transformers import AttentionInterface, AttentionMaskInterface

    name = PREFIX + record.name
    AttentionInterface.register(name, _checked(functions.forward, plugin))
    if functions.mask is not None:
        AttentionMaskInterface.register(name, _naming(functions.mask, plugin))
    return name


def _naming(function: Callable[..., Any], plugin: Plugin) -> Callable[..., Any]:
    """`function`, which names the plugin where it raises: otherwise the stage that runs the model would be named."""

    @wraps(function)
    def named(*args: Any, **kwargs: Any) -> Any:
        try:  # not `blamed`: this is called in each layer
            return function(*args, **kwargs)
        except (Exception, SystemExit) as error:
            if passes(error):
                raise
            raise raised(plugin, error) from error

    return named


def _checked(forward: Callable[..., Any], plugin: Plugin) -> Callable[..., Any]:
    """An attention's `forward`, which names the plugin where it raises or returns the wrong thing."""
    named, fresh = _naming(forward, plugin), True

    @wraps(forward)
    def attention(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal fresh
        result = named(module, query, *args, **kwargs)
        if fresh:  # the first layer of the probe before training tells
            fresh = False
            batch, heads, tokens = query.shape[:3]
            output = result[0] if isinstance(result, tuple) and result else None
            if getattr(output, "shape", ())[:3] != (batch, tokens, heads):
                wants = "It returns (output, weights or None), the output of shape (batch, tokens, heads, width)"
                raise breach(plugin, f"returned {typename(result)} for a query of shape {tuple(query.shape)}", wants)
        return result

    return attention
