"""The engine `torch`: CPU, one GPU, or data parallel under torchrun."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bumblecore_core import Batch, EngineContext, ParameterGroup, StepOutput, StepResult
from bumblecore_core.toolkit.launch_environment import read_launch
from bumblecore_plugins.engines import TorchOptions
from bumblecore_plugins.engines.distributed import (
    barrier,
    choose_device,
    device_words,
    join,
    leave,
    same_on_all_ranks,
    sum_over_ranks,
)
from bumblecore_plugins.engines.gradient_sync import GradientSync
from bumblecore_plugins.engines.precision import NAMES, LossScale, cast, frozen, resolve_dtype
from bumblecore_plugins.engines.schedule_state import (
    advance,
    learning_rates,
    scale_and_clip,
    trained_parameters,
    whole_state,
)
from bumblecore_plugins.engines.torch_state import TorchState

if TYPE_CHECKING:
    from bumblecore_core.protocols import Scheduler


class TorchEngine:
    """See `bumblecore_core.protocols.Engine`. Device, dtype and process group are settled here, before a model exists.

    Each trainable weight has a counterpart that the optimizer steps (`precision.cast`): itself in float32 training, a
    float32 master in half precision. Weights are written back from the masters after each step.
    """

    background_saving = True
    holds_model = True

    def __init__(self, *, options: TorchOptions, context: EngineContext) -> None:
        launch = read_launch(os.environ)
        self._context = context
        self._options = options
        self.rank = launch.rank
        self.world_size = launch.world_size
        self.device = choose_device(options.device, launch)
        self.dtype, self._why_dtype = resolve_dtype(context.dtype, self.device, master_weights=context.master_weights)
        self._joined = join(launch, self.device, options.timeout_seconds)
        self._loss_scale = LossScale() if self.dtype == torch.float16 else None
        self._sync: GradientSync | None = None
        # One process multiplies a window's gradients once, in `step`, and not in every backward pass, where the fused
        # head would go over its float32 gradient again. Ranks may differ in scale, and fp16 must not overflow: these
        # scale the loss.
        self._scales_in_step = self.world_size == 1 and self._loss_scale is None
        self._window_scale = 1.0

    def features(self) -> Sequence[tuple[str, str]]:
        context, half = self._context, self.dtype != torch.float32
        lines = [("device", device_words(self.device)), ("dtype", f"{NAMES[self.dtype]} ({self._why_dtype})")]
        if half:
            lines.append(("master weights", "float32" if context.master_weights else "none (pure half precision)"))
            lines.append(("gradients", "float32" if context.float32_gradients else NAMES[self.dtype]))
        if self._loss_scale is not None:
            lines.append(("loss scale", f"dynamic, from {self._loss_scale.value:g}"))
        if self.world_size > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            lines.append(("data parallel", f"{self.world_size} processes over {backend}"))
        return lines

    def prepare(
        self,
        *,
        module: torch.nn.Module,
        groups: Sequence[ParameterGroup],
        make_optimizer: Callable[[Sequence[ParameterGroup]], torch.optim.Optimizer],
        make_scheduler: Callable[[torch.optim.Optimizer], Scheduler],
    ) -> None:
        trained = trained_parameters(groups)
        self._module = module.to(self.device)
        if self.world_size > 1:
            same_on_all_ranks(self._module)
        stepped = cast(
            self._module,
            self.dtype,
            master_weights=self._context.master_weights,
            float32_gradients=self._context.float32_gradients,
        )
        self._pairs = [(parameter, stepped[id(parameter)]) for parameter in trained]
        self._optimizer = make_optimizer(
            [
                ParameterGroup(
                    name=group.name,
                    params=[stepped[id(parameter)] for parameter in group.params],
                    decay=group.decay,
                    lr_scale=group.lr_scale,
                )
                for group in groups
            ]
        )
        self._scheduler = make_scheduler(self._optimizer)
        names = {id(parameter): name for name, parameter in getattr(module, "model", module).named_parameters()}
        self._state = TorchState(
            parameters=[(names[id(parameter)], parameter, target) for parameter, target in self._pairs],
            optimizer=self._optimizer,
            scheduler=self._scheduler,
            loss_scale=self._loss_scale,
        )
        if self.world_size > 1:
            chosen = {id(parameter) for parameter in trained}
            in_order = [parameter for parameter in self._module.parameters() if id(parameter) in chosen]
            self._sync = GradientSync(in_order, bucket_bytes=self._options.bucket_megabytes * 1e6)
        elif self.device.type == "cpu":
            _look_up_sparsely(getattr(module, "model", module))
        self._module.train()

    def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def frozen(self, *, module: torch.nn.Module) -> Callable[[Any], Any]:
        return torch.no_grad()(frozen(module, self.dtype, self.device))

    def forward_backward(self, *, batch: Batch, scale: float, last: bool) -> StepOutput:
        if self._sync is not None and last:
            self._sync.arm()
        output = self._forward_backward(batch.to(self.device), scale)
        if self._sync is not None and last:
            self._sync.send_rest()
        return output

    def _forward_backward(self, batch: Batch, scale: float) -> StepOutput:
        if scale == 0:
            # A filler: its metrics' names are wanted, its gradient is zero. No backward, for 0 × NaN is NaN.
            with torch.no_grad():
                return _detached(self._module(batch))
        output = self._module(batch)
        if self._scales_in_step:
            self._window_scale = scale
            scale = 1.0
        elif self._loss_scale is not None:
            scale *= self._loss_scale.value
        (output.loss_sum if scale == 1.0 else output.loss_sum * scale).backward()
        return _detached(output)

    @torch.no_grad()
    def step(self, *, gradient_scale: float) -> StepResult:
        if self._sync is not None:
            self._sync.finish()
        factor = gradient_scale * self._window_scale
        if self._loss_scale is not None:
            factor /= self._loss_scale.value
        targets, gradients = self._take_gradients()
        norm = scale_and_clip(gradients, factor, self._context.max_grad_norm)
        skipped = not math.isfinite(norm)
        if not skipped:
            for target, gradient in zip(targets, gradients, strict=True):
                target.grad = gradient.to(target.dtype)
            self._optimizer.step()
            self._write_back()
        self._optimizer.zero_grad(set_to_none=True)
        if self._loss_scale is not None:
            self._loss_scale.update(overflowed=skipped)
        return StepResult(grad_norm=norm, skipped=skipped)

    def advance_schedule(self, *, metric: float | None) -> None:
        advance(self._scheduler, metric)

    def learning_rates(self) -> dict[str, float]:
        return learning_rates(self._optimizer)

    def evaluate(self, *, batch: Batch) -> StepOutput:
        training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                return _detached(self._module(batch.to(self.device)))
        finally:
            self._module.train(training)

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        return sum_over_ranks(values, self.device, self.world_size)

    def barrier(self) -> None:
        barrier(self.device, self.world_size)

    def model_state(
        self, *, wanted: Callable[[str], bool] | None = None, copy: bool = False
    ) -> dict[str, torch.Tensor]:
        """Without `copy` the weights as they are: write them before the next step."""
        return whole_state(self._module.model, wanted=wanted, copy=copy) if self.rank == 0 else {}

    def training_state(self, *, copy: bool) -> Callable[[Path], None]:
        """Ranks hold the same state: rank 0 writes it for all."""
        return self._state.writer(copy=copy) if self.rank == 0 else lambda directory: None

    def load_training_state(self, *, directory: Path) -> None:
        """Any number of ranks can take up what any other number wrote."""
        self._state.load(directory / "rank-0")

    def close(self) -> None:
        if self._joined:
            leave()
        self._joined = False

    def _take_gradients(self) -> tuple[list[torch.nn.Parameter], list[torch.Tensor]]:
        """What the optimizer steps, and the window's gradients for it in the wider of the two's dtypes."""
        targets, gradients = [], []
        for parameter, target in self._pairs:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                targets.append(target)
                gradients.append(gradient.float() if target.dtype == torch.float32 else gradient)
        return targets, gradients

    def _write_back(self) -> None:
        """Weights from masters, rounded to nearest. Without masters the optimizer stepped the weights' own memory."""
        pairs = [(weight, master) for weight, master in self._pairs if weight.dtype != master.dtype]
        if pairs:
            weights, masters = zip(*pairs, strict=True)
            torch._foreach_copy_(weights, masters)


def _detached(output: StepOutput) -> StepOutput:
    output.loss_sum = output.loss_sum.detach()
    return output


def _look_up_sparsely(model: torch.nn.Module) -> None:
    """Lets the gradient of a tied embedding's look-ups hold the looked-up rows alone.

    The head's gradient covers the whole (V, H) matrix anyway; as a matrix of its own the look-ups' gradient, almost all
    zeros, would be made, cast to float32 and added in every micro-batch. Autograd adds the rows into the head's.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(embedding) is torch.nn.Embedding and head is not None and head.weight is embedding.weight:
        embedding.sparse = True
