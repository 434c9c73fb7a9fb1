"""What an engine is told, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from bumblecore_core.values import Batch, ParameterGroup, StepOutput, StepResult

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

    Scheduler: TypeAlias = LRScheduler | ReduceLROnPlateau


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

    `holds_model`: whether `prepare` needs this rank's weights; where not (ZeRO-3 beyond rank 0) the model that it gets
    is a skeleton, whose parameters have shapes and no memory. `dtype`: the dtype that the weights compute in, resolved
    from the context's. `background_saving`: whether `training_state` can copy, so that files are written while training
    goes on.

    For the estimate of memory an engine may have `sharded`: which of `AdamW moments`, `float32 masters`, `gradients`
    and `weights` it spreads over the ranks; and `elsewhere`: by those that lie outside the device's memory, where.
    """

    background_saving: bool
    holds_model: bool
    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype

    def features(self) -> Sequence[tuple[str, str]]:
        """(feature, what was decided) lines for the start summary."""
        ...

    def prepare(
        self,
        *,
        module: torch.nn.Module,
        groups: Sequence[ParameterGroup],
        make_optimizer: Callable[[Sequence[ParameterGroup]], torch.optim.Optimizer],
        make_scheduler: Callable[[torch.optim.Optimizer], Scheduler],
    ) -> None:
        """Moves, casts and wraps `module` (`forward(batch) -> StepOutput`), makes optimizer and scheduler.

        A parameter in `module.used_outside` is used outside its own module's forward (a fused loss takes the
        head's weight): an engine that shards weights has it whole during `module`'s forward.
        """
        ...

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function` gives when it is called inside the wrapped module's forward (which passes it through)."""
        ...

    def frozen(self, *, module: torch.nn.Module) -> Callable[[Any], Any]:
        """What calls another module like the wrapped one, without gradients and in evaluation mode: a reference model,
        moved and cast, and sharded where this engine shards weights. Freed with the function. A collective."""
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
        """Waits for every rank. One that works alone (tokenizes, reads a model, writes a checkpoint) may take longer
        than any limit of a collective: an engine should wait for it as long as it lives."""
        ...

    def model_state(
        self, *, wanted: Callable[[str], bool] | None = None, copy: bool = False
    ) -> dict[str, torch.Tensor]:
        """The full weights of the wrapped model in its compute dtype, under the inner model's names, on rank 0 (an
        empty dict elsewhere). A collective. With `copy` they lie in CPU memory of their own, and names that share a
        tensor (tied weights) share it still; without, they may be the live ones, which hold until the next step.
        `wanted`: only weights of such names (an adapter's), so that a frozen base is not gathered."""
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
