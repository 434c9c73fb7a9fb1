"""Adapters, loggers, and attention implementations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bumblecore_core.values import RunInfo, RunResult, StepEvent

if TYPE_CHECKING:
    import torch


class Adapter(Protocol):
    """Wraps the model with trainable parts (`lora`). One object per run. An option called `path` is a directory to
    go on from: a later run's is looked for before the runs ahead of it train."""

    def wrap(
        self, *, model: torch.nn.Module, base: Path, checkpoint: Path | None, new_tokens: Sequence[int] = ()
    ) -> torch.nn.Module:
        """The model with the adapter in it; parameters that stay frozen have `requires_grad=False`. `model`: on the
        CPU, just loaded from the directory `base`; for `bumble plan` without weights, on the meta device. `checkpoint`:
        takes up what `save` wrote there instead of a fresh start. `new_tokens`: ids of tokens that the run adds to the
        vocabulary; `model` has a row for each, and the adapter trains and saves these rows of the input embedding and
        of the output head. Passed only where there are any. Torch's generator is seeded by the run. Raises `ModelError`
        BC031 (nothing matches)."""
        ...

    def describe(self, *, model: torch.nn.Module) -> tuple[str, Sequence[str]]:
        """(the wrapped model's adapter in a line for the start summary, warnings to show beside it)."""
        ...

    def lr_scale(self, *, name: str) -> float:
        """Factor on the learning rate of the wrapped model's trainable parameter `name`; 1.0 for the usual rate."""
        ...

    def saves(self, *, name: str) -> bool:
        """Whether `save` needs the wrapped model's weight `name`."""
        ...

    def base_policy(self, *, model: torch.nn.Module) -> AbstractContextManager[None]:
        """A context in which `model` computes as the base model does (a reference model at no memory)."""
        ...

    def save(self, *, model: torch.nn.Module, state: Mapping[str, torch.Tensor], directory: Path) -> None:
        """Writes the adapter alone, in its library's own file layout. `state`: the weights that `saves` names. Called
        in another thread while training goes on: read values from `state` only."""
        ...

    def merge(self, *, model: torch.nn.Module) -> torch.nn.Module:
        """The base model with the adapter folded into its weights."""
        ...


class Logger(Protocol):
    """Sees the run on rank 0. A logger that raises is reported once and dropped; training goes on."""

    def start(self, *, info: RunInfo) -> None: ...

    def step(self, *, event: StepEvent) -> None: ...

    def saved(self, *, directory: Path) -> None: ...

    def finish(self, *, result: RunResult) -> None: ...


@dataclass(frozen=True, kw_only=True)
class AttentionFunctions:
    """What transformers' `AttentionInterface` and `AttentionMaskInterface` register under a name. `forward` has their
    attention signature; `mask` returns the mask that the layers get (usually None). With both None, the name is one
    that transformers itself knows."""

    forward: Callable[..., Any] | None = None
    mask: Callable[..., Any] | None = None
