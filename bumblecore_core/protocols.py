"""What each record's `build` must return. Parameters are keyword-only by convention and named as here.

These are structural types: a plugin class needs no base class, only the same method names and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from bumblecore_core.values import (
    Batch,
    Dropped,
    ParameterGroup,
    RunInfo,
    RunResult,
    Sample,
    SampleKind,
    StepEvent,
    StepOutput,
    StepResult,
    TokenExample,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

    from bumblecore_core.errors import RowError
    from bumblecore_core.toolkit.policy import Head, Policy

    Scheduler: TypeAlias = LRScheduler | ReduceLROnPlateau

Row: TypeAlias = Mapping[str, Any]
"""One parsed row of a data file."""


class DataFormat(Protocol):
    """Converts rows of one schema."""

    def convert(self, *, row: Row) -> Sample:
        """The sample of `row`. Raises `RowError` with the path of the offending field."""
        ...


class TokenLoss(Protocol):
    """A loss over supervised positions (`LossRecord(kind="token")`)."""

    def __call__(self, *, hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> StepOutput:
        """`hidden`: (N, H) last hidden states; `targets`: (N,) int64 token ids; `head.logits(hidden)`: (N, V).

        N may be 0. Returns the *sum* over the N positions and N as the count.
        """
        ...


class PreferenceLoss(Protocol):
    """A loss over pairs (`LossRecord(kind="preference")`)."""

    def __call__(
        self,
        *,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        reference_chosen: torch.Tensor | None,
        reference_rejected: torch.Tensor | None,
    ) -> StepOutput:
        """Each tensor: (P,) summed log-probabilities of P pairs' completions. Returns the sum over pairs, and P."""
        ...


Loss: TypeAlias = TokenLoss | PreferenceLoss


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a stage may use: the tokenizer (transformers, its chat template set), `max_length` in tokens, and whether
    an oddity that is usually dropped with a warning must be an error (`strict`)."""

    tokenizer: Any
    max_length: int
    strict: bool = False


class Stage(Protocol):
    """Encodes samples to token examples and computes a step.

    `columns` names the ragged int32 columns that every example of this stage carries.
    """

    columns: tuple[str, ...]

    def encode(
        self, *, samples: Sequence[Sample]
    ) -> Sequence[TokenExample | Sequence[TokenExample] | Dropped | RowError]:
        """One entry per sample: an example, several (a long document cut up), a `Dropped`, or a `RowError` (returned,
        not raised). Called with hundreds of samples at a time, in worker processes too."""
        ...

    def collate(
        self, *, examples: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int], counts: Sequence[int]
    ) -> Batch:
        """The padding-free micro-batch of `examples` (column name → (n,) int32 array), on the CPU."""
        ...

    def step(self, *, policy: Policy, batch: Batch, loss: Loss) -> StepOutput:
        """Forward pass and loss of one micro-batch that is already on the device."""
        ...

    def preview(self, *, example: Mapping[str, np.ndarray]) -> Sequence[tuple[str, bool]]:
        """The example decoded as (text, trained) segments, for the start summary."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineContext:
    """What an engine is told before the model exists. `dtype`: bf16, fp16, fp32 or auto. `master_weights`: float32
    masters for half-precision weights. `float32_gradients`: accumulate gradients in float32 over the window."""

    dtype: Literal["auto", "bf16", "fp16", "fp32"]
    master_weights: bool = True
    float32_gradients: bool = True
    max_grad_norm: float | None = None
    gradient_accumulation_steps: int = 1
    micro_batch_size: int = 1


class Engine(Protocol):
    """Owns devices, wrapping, backward, step and state. One engine per process; `rank` 0 speaks.

    `dtype`: the dtype that the weights compute in, resolved from the context's. `background_saving`: whether
    `training_state` can copy, so that files are written while training goes on.
    """

    background_saving: bool
    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype

    def features(self) -> Sequence[tuple[str, str]]:
        """(feature, what was decided) lines for the start summary."""
        ...

    def model_context(self) -> AbstractContextManager[None]:
        """Entered around building or loading the model (ZeRO-3 shards parameters inside it)."""
        ...

    def prepare(
        self,
        *,
        module: torch.nn.Module,
        groups: Sequence[ParameterGroup],
        make_optimizer: Callable[[Sequence[ParameterGroup]], torch.optim.Optimizer],
        make_scheduler: Callable[[torch.optim.Optimizer], Scheduler],
    ) -> None:
        """Moves, casts and wraps `module` (`forward(batch) -> StepOutput`), makes optimizer and scheduler."""
        ...

    def forward_backward(self, *, batch: Batch, scale: float, last: bool) -> StepOutput:
        """One micro-batch: forward, and backward of `loss_sum × scale`; gradients of all ranks are *summed*. `last`
        marks the window's last micro-batch, after which gradients must be in sync. Returns detached tensors."""
        ...

    def step(self, *, gradient_scale: float) -> StepResult:
        """Multiplies the window's gradients by `gradient_scale`, clips, steps optimizer, zeroes gradients. Where the
        gradient is not finite nothing is updated and `skipped` is true."""
        ...

    def advance_schedule(self, *, metric: float | None) -> None:
        """Steps the scheduler: with None after each optimizer step; a plateau schedule steps only with a metric."""
        ...

    def learning_rates(self) -> dict[str, float]:
        """Current learning rate by parameter-group name."""
        ...

    def evaluate(self, *, batch: Batch) -> StepOutput:
        """Forward pass only, in evaluation mode and without gradients."""
        ...

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum in float64 over all ranks (the values themselves on one rank). A collective."""
        ...

    def barrier(self) -> None:
        """Waits for every rank."""
        ...

    def model_state(self) -> dict[str, torch.Tensor]:
        """The full weights of the wrapped model in its compute dtype, under the inner model's names, on rank 0 (an
        empty dict elsewhere). A collective. The tensors may be the live ones: they hold until the next step."""
        ...

    def training_state(self, *, copy: bool) -> Callable[[Path], None]:
        """What this rank saves beside the weights (optimizer, schedule, masters, loss scale), as a function that writes
        it into an empty directory of this rank's own. A collective.

        With `copy` (asked for only where `background_saving`) the function holds copies, runs in another thread while
        training goes on, and uses no collectives. Without, every rank calls it before the next step.
        """
        ...

    def load_training_state(self, *, directory: Path) -> None:
        """Puts back what was saved into `directory`/rank-0, `directory`/rank-1, …; called after `prepare`, whose model
        holds the saved weights already. Raises `RunError` BC048 or BC049 where this engine cannot continue from the
        number of ranks or the ZeRO stage that it was saved under."""
        ...

    def close(self) -> None:
        """Releases process groups; safe to call twice."""
        ...


class Adapter(Protocol):
    """Wraps the model with trainable parts (`lora`)."""

    def wrap(self, *, model: torch.nn.Module) -> torch.nn.Module:
        """The model with the adapter in it; parameters that stay frozen have `requires_grad=False`."""
        ...

    def base_policy(self, *, model: torch.nn.Module) -> AbstractContextManager[None]:
        """A context in which `model` computes as the base model does (a reference model at no memory)."""
        ...

    def save(self, *, model: torch.nn.Module, state: Mapping[str, torch.Tensor], directory: Path) -> None:
        """Writes the adapter alone, in its library's own file layout."""
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


SampleKinds: TypeAlias = tuple[SampleKind, ...]
