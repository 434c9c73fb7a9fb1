"""Putting a run's adapter into its model, and what the start summary says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import ConfigError, one
from bumblecore_core.protocols import Adapter
from bumblecore_core.toolkit.adapter_tensors import token_parameters
from bumblecore_core.toolkit.policy import head_parameters
from bumblecore_core.toolkit.seeds import derive_seed


def require_trained_base(resolved: ResolvedRun) -> None:
    """Raises `ConfigError` BC039 for an adapter on random weights, which it would not save."""
    if resolved.adapter is not None and resolved.stage.record.model_from == "config":
        problem = f"the stage {resolved.stage.name} starts from random weights, which an adapter does not save"
        fix = "Set adapter to null, or choose a stage that starts from trained weights"
        raise one(ConfigError, "BC039", problem, fix, field="adapter, stage.name")


def adapted(
    resolved: ResolvedRun,
    adapter: Adapter,
    model: Any,
    *,
    base: Path,
    checkpoint: Path | None = None,
    new_tokens: Sequence[int] = (),
) -> Any:
    """`model`, loaded from `base`, with the adapter in it; random numbers come from a stream of the run's seed.
    `new_tokens`: see `Adapter.wrap`."""
    added = {"new_tokens": new_tokens} if new_tokens else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(resolved.config.train.seed, "adapter"))
        return adapter.wrap(model=model, base=base, checkpoint=checkpoint, **added)


def described(resolved: ResolvedRun, adapter: Adapter | None, model: Any) -> tuple[str, tuple[str, ...]]:
    """(what the summary says of the run's adapter, warnings to show with it)."""
    if adapter is None or resolved.adapter is None:
        return "none (full fine-tuning)", ()
    words, warnings = adapter.describe(model=model)
    return f"{resolved.adapter.name}: {words}", tuple(warnings)


def lr_scales(adapter: Adapter | None) -> Callable[[str], float]:
    """Factor on the learning rate by a parameter's name."""
    return (lambda name: 1.0) if adapter is None else (lambda name: adapter.lr_scale(name=name))


def used_outside(model: Any) -> list[torch.nn.Parameter]:
    """Parameters of a model, with an adapter in it or not, that are used outside their own module's forward pass: those
    of a head that is read as data, and embeddings with single rows that an adapter trains."""
    return head_parameters(model) + (token_parameters(model) if hasattr(model, "peft_config") else [])
