"""The engine `deepspeed`: ZeRO stages 0 to 3, on CPUs and GPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bumblecore_core import Batch, ConfigError, EngineContext, ParameterGroup, StepOutput, StepResult, one
from bumblecore_core.toolkit.launch_environment import read_launch
from bumblecore_plugins.engines import DeepSpeedOptions
from bumblecore_plugins.engines.deepspeed_config import (
    left_device,
    make_config,
    nvme_directory,
    sizes_of,
    spread_over_ranks,
    zero_stage,
)
from bumblecore_plugins.engines.deepspeed_file import NVME, OFFLOADS, read_config_file
from bumblecore_plugins.engines.deepspeed_library import (
    TensorsOut,
    check_with_deepspeed,
    enter_environment,
    frozen_shards,
    load_deepspeed,
    refusals,
    same_buffers,
    silent,
    untouched,
)
from bumblecore_plugins.engines.distributed import (
    barrier,
    choose_device,
    device_words,
    join,
    limit_groups,
    reported,
    sum_over_ranks,
)
from bumblecore_plugins.engines.precision import NAMES, frozen, kept_in_float32, resolve_dtype
from bumblecore_plugins.engines.schedule_state import (
    advance,
    learning_rates,
    scale_and_clip,
    trained_parameters,
    whole_state,
)
from bumblecore_plugins.engines.zero_layout import by_owner, fragments
from bumblecore_plugins.engines.zero_nvme import SwapDirectory, build_async_io, resident
from bumblecore_plugins.engines.zero_scale import complete_gradients, forget_gradients, loss_scaler, scaled_gradients
from bumblecore_plugins.engines.zero_shards import gathered, place, spread
from bumblecore_plugins.engines.zero_state import ZeroState

if TYPE_CHECKING:
    from bumblecore_core.protocols import Scheduler


class DeepSpeedEngine:
    """See `bumblecore_core.protocols.Engine`. The configuration is checked here, before anything is read.

    DeepSpeed averages gradients over ranks and divides by its own accumulation steps; the contract is a sum, so losses
    are multiplied by the number of ranks and DeepSpeed is told not to divide. It keeps float32 masters of weights in
    half precision itself.
    """

    def __init__(self, *, options: DeepSpeedOptions, context: EngineContext) -> None:
        launch = read_launch(os.environ)
        self._context, self._options = context, options
        self.rank, self.world_size = launch.rank, launch.world_size
        self.device = choose_device(options.device, launch)
        self.dtype, self._why_dtype = resolve_dtype(context.dtype, self.device, master_weights=context.master_weights)
        if self.dtype != torch.float32 and not context.master_weights:
            problem = "the engine deepspeed keeps float32 masters of half-precision weights"
            fix = "Set model.master_weights to true, or choose the engine torch"
            raise one(ConfigError, "BC039", problem, fix, field="model.master_weights, engine")
        self._warnings: list[str] = []
        self._given = read_config_file(options.config_file, self._warnings.append)
        self._stage = zero_stage(options, self._given)
        self._nvme, self._swap = nvme_directory(options, self._given), None
        self._zero_section = self._make_config()["zero_optimization"]
        self.holds_model = self._stage < 3 or self.rank == 0
        self.background_saving = self._nvme is None  # a copy in memory of what does not fit there
        self.sharded = spread_over_ranks(self._stage)
        self.elsewhere = left_device(self._zero_section, self.device)
        os.environ.setdefault("DS_ACCELERATOR", self.device.type)
        check_with_deepspeed(self._make_config(), self._given)
        join(launch, self.device, options.timeout_seconds, alone=True)
        self._leave_environment = enter_environment(launch)
        if self._nvme is not None:
            load_deepspeed()
            build_async_io(launch, self.barrier)
            self._swap = SwapDirectory(self._nvme)

    def features(self) -> Sequence[tuple[str, str]]:
        words = {0: "nothing", 1: "optimizer state", 2: "optimizer state and gradients", 3: "weights too"}
        lines = [
            ("device", device_words(self.device)),
            ("dtype", f"{NAMES[self.dtype]} ({self._why_dtype})"),
            ("ZeRO stage", f"{self._stage} (sharded over {self.world_size} processes: {words[self._stage]})"),
        ]
        if self._stage >= 2 and self.world_size > 1 and (micros := self._context.gradient_accumulation_steps) > 1:
            lines.append(("gradients sent", f"in each of {micros} micro-batches (zero_stage 1: once a step)"))
        if self.dtype != torch.float32:
            lines += [("master weights", "float32"), ("gradients", "float32" if self._wide else NAMES[self.dtype])]
        for name, what in zip(OFFLOADS, ("optimizer state", "weights"), strict=True):
            if (device := self._zero_section.get(name, {}).get("device", "none")) != "none":
                lines.append((f"offload of {what}", f"to {self._nvme if device == NVME else 'the memory of the cpu'}"))
        return [*lines, *(("warning", line) for line in self._warnings)]

    def prepare(
        self,
        *,
        module: torch.nn.Module,
        groups: Sequence[ParameterGroup],
        make_optimizer: Callable[[Sequence[ParameterGroup]], torch.optim.Optimizer],
        make_scheduler: Callable[[torch.optim.Optimizer], Scheduler],
    ) -> None:
        trained = trained_parameters(groups)
        model: Any = getattr(module, "model", module)
        if self.dtype != torch.float32 and kept_in_float32(module) is not None:
            problem = f"{type(model).__name__} keeps some weights in float32, which this engine does not"
            raise one(ConfigError, "BC039", problem, "Choose the engine torch, or model.dtype fp32", field="engine")
        self._module, self._model, self._trained = TensorsOut(module), model, trained
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        config = self._make_config(model, trained)
        deepspeed = load_deepspeed()
        masters = place(self._module, names, config=config, **self._where())
        self._optimizer = make_optimizer(groups)
        self._check_optimizer()
        with silent(), refusals(self._given), untouched(self._optimizer), same_buffers(model):
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=self._module, optimizer=self._optimizer, config=config, dist_init_required=False
            )
        limit_groups(self._options.timeout_seconds)
        if self._stage == 3:
            self._module.keep_whole()
        in_place = self._stage == 0 and self.dtype != torch.float32 and self._wide
        self._wide_gradients = trained if in_place else []
        for parameter in self._wide_gradients:
            parameter.grad_dtype = torch.float32
        # float32 gradients are looked at for infinities too, as those of half precision are
        self._zero.check_grad_overflow = True
        parts = fragments(self._zero, names, stage=self._stage, rank=self.rank)
        for owner, inside in by_owner(parts) if masters else ():
            with resident(self._zero, owner, write=True):
                for part in inside:
                    if (values := masters.get(part.name)) is not None:
                        begin = 0 if self._stage == 3 else part.start
                        part.values.copy_(values[begin : begin + part.length])
        self._scheduler = make_scheduler(self._optimizer)
        self._state = ZeroState(
            fragments=parts,
            names=[names[id(parameter)] for parameter in trained],
            stage=self._stage,
            zero=self._zero,
            optimizer=self._optimizer,
            scheduler=self._scheduler,
            loss_scaler=loss_scaler(self._zero) if self.dtype == torch.float16 else None,
        )
        self._engine.train()

    def call(self, function: Callable[[], Any]) -> Any:
        self._engine(function)
        return self._module.latest

    def frozen(self, *, module: torch.nn.Module) -> Callable[[Any], Any]:
        if self._stage < 3:
            return torch.no_grad()(frozen(module, self.dtype, self.device))
        wrapped = TensorsOut(module.requires_grad_(False))
        config = self._make_config(wrapped.model, part="reference")
        load_deepspeed()
        spread(wrapped, config=config, **self._where())
        return frozen_shards(wrapped, config, self._options.timeout_seconds)

    def forward_backward(self, *, batch: Batch, scale: float, last: bool) -> StepOutput:
        self._engine.set_gradient_accumulation_boundary(last)
        for parameter in self._wide_gradients:
            if parameter.grad is None:  # DeepSpeed would give a weight that is not used one of the weight's dtype
                parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        with reported("a forward and backward pass", whole=False):
            loss_sum = self._engine(batch.to(self.device))
            # a filler goes through backward too, with a gradient of zero: its collectives are the others' as well
            self._engine.backward(loss_sum * (scale * self.world_size), scale_wrt_gas=False)
            if not last:
                self._engine.step()
        return self._output()

    @torch.no_grad()
    def step(self, *, gradient_scale: float) -> StepResult:
        with reported("an optimizer step", whole=False):
            if self._zero is self._optimizer:
                return self._plain_step(gradient_scale)
            # of fp16's scaled gradients stage 0 gives the norm as they are
            scale = loss_scaler(self._zero).cur_scale if self._stage == 0 and self.dtype == torch.float16 else 1.0
            complete_gradients(self._zero)
            with scaled_gradients(self._zero, self._trained, gradient_scale):
                self._engine.step()
            forget_gradients(self._zero)
        norm = self._engine.get_global_grad_norm()
        skipped = bool(self._zero.overflow)
        return StepResult(grad_norm=math.inf if skipped or norm is None else float(norm) / scale, skipped=skipped)

    def advance_schedule(self, *, metric: float | None) -> None:
        advance(self._scheduler, metric)

    def learning_rates(self) -> dict[str, float]:
        return learning_rates(self._optimizer)

    def evaluate(self, *, batch: Batch) -> StepOutput:
        training = self._module.training
        self._engine.eval()
        try:
            with torch.no_grad(), reported("an evaluation pass", whole=False):
                self._engine(batch.to(self.device))
                return self._output()
        finally:
            self._engine.train(training)

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        return sum_over_ranks(values, self.device, self.world_size)

    def barrier(self) -> None:
        barrier(self.device, self.world_size)

    def model_state(
        self, *, wanted: Callable[[str], bool] | None = None, copy: bool = False
    ) -> dict[str, torch.Tensor]:
        """Of stage 3 always copies in rank 0's memory, gathered one by one."""
        if self._stage == 3:
            with reported("gathering the weights", whole=False):
                # a forward without a backward pass leaves weights on their way, fetched for what did not come
                self._engine.empty_partition_cache()
                return gathered(self._model, rank=self.rank, wanted=wanted)
        return whole_state(self._model, wanted=wanted, copy=copy) if self.rank == 0 else {}

    def training_state(self, *, copy: bool) -> Callable[[Path], None]:
        """Each rank writes its shard; of stage 0, where all hold the same, rank 0 alone."""
        return self._state.writer(copy=copy) if self._stage > 0 or self.rank == 0 else lambda directory: None

    def load_training_state(self, *, directory: Path) -> None:
        self._state.load(directory)

    def close(self) -> None:
        """The process group stays for the process's next run: DeepSpeed keeps groups of its own made from it."""
        if (engine := self.__dict__.pop("_engine", None)) is not None:
            engine.destroy()
        if self._swap is not None:
            self._swap.remove()
        self._leave_environment()

    def _output(self) -> StepOutput:
        output: StepOutput = self._module.latest
        output.loss_sum = output.loss_sum.detach()
        return output

    @property
    def _wide(self) -> bool:
        return self._context.float32_gradients or self.dtype == torch.float32

    def _make_config(
        self, model: Any = None, trained: Sequence[torch.nn.Parameter] = (), part: str = "model"
    ) -> dict[str, Any]:
        """`part`: what to keep its swap files apart from others' by."""
        return make_config(
            options=self._options,
            given=self._given,
            context=self._context,
            dtype=self.dtype,
            world_size=self.world_size,
            **({} if model is None else sizes_of(model, trained, self.world_size)),
            swap_directory=None if self._swap is None or model is None else self._swap.part(part),
        )

    def _where(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device, "rank": self.rank, "world_size": self.world_size}

    def _check_optimizer(self) -> None:
        if self._stage > 0 and isinstance(self._optimizer, torch.optim.Adafactor):
            problem = "adafactor works on whole matrices, which ZeRO cuts into pieces from stage 1 on"
            fix = "Choose another optimizer, such as adamw, or set engine.zero_stage to 0"
            raise one(ConfigError, "BC039", problem, fix, field="optimizer.name, engine.zero_stage")

    def _plain_step(self, gradient_scale: float) -> StepResult:
        """Stage 0 in float32: DeepSpeed has no optimizer of its own there, so nothing scales, clips or skips."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norm = scale_and_clip(gradients, gradient_scale, self._context.max_grad_norm)
        skipped = not math.isfinite(norm)
        if skipped:
            for parameter in self._trained:
                parameter.grad = None
        self._engine.step()
        return StepResult(grad_norm=norm, skipped=skipped)
