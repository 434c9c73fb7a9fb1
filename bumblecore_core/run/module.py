"""The one module that engines wrap: model, stage and loss behind `forward(batch) -> StepOutput`.

DDP prepares its reducer, and ZeRO its parameter traces, in the wrapped module's own `forward`; so nothing of the model
is ever called around the wrapper.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bumblecore_core.errors import BumbleError
from bumblecore_core.protocols import Loss, Stage
from bumblecore_core.run.blame import Plugin, blamed, breach
from bumblecore_core.run.checked_loss import CheckedLoss
from bumblecore_core.run.returned import WANTS_STEP, output_fault
from bumblecore_core.run.router_loss import RouterTraining
from bumblecore_core.run.sum_check import SumCheck
from bumblecore_core.toolkit.policy import Policy
from bumblecore_core.values import Batch, StepOutput

READ_PASSES = 3  # reading a number waits for the GPU, so later passes check types and shapes alone


class TrainModule(torch.nn.Module):
    """`model` holds the parameters and is what is saved; `policy` is the same model as the stage sees it.

    `used_outside`: parameters that are used outside their own modules, such as the head's by a fused loss.
    `make_loss`: builds the loss anew, to look at once; None where it is not called, or is known to be a sum.
    `routers`: those of a mixture of experts, recorded in training; None without any, or where nothing is trained.
    The policy is set once the engine has prepared the module: it is probed on the final device, in the final dtype.
    """

    policy: Policy
    asks: str = ""
    """Which method of the stage `forward` gives the figures of, such as `reference_step`, instead of the loss."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        stage: Stage,
        stage_plugin: Plugin,
        loss: Loss,
        loss_plugin: Plugin,
        make_loss: Callable[[], Loss] | None = None,
        used_outside: Sequence[torch.nn.Parameter] = (),
        routers: RouterTraining | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.used_outside = tuple(used_outside)
        self.routers = routers
        self.stage, self.stage_plugin = stage, stage_plugin
        self._passes = 0
        self.loss = loss  # one that is a module itself moves to the device with this one
        self.checked_loss = CheckedLoss(loss, loss_plugin, SumCheck(loss_plugin, make_loss) if make_loss else None)

    @contextmanager
    def asking(self, method: str) -> Iterator[None]:
        """Has `forward` give the figures that a method of the stage gives of a batch (`per_example`)."""
        self.asks = method
        try:
            yield
        finally:
            self.asks = ""

    def forward(self, batch: Batch | Callable[[], Any]) -> Any:
        """Loss sum, count and metrics of one micro-batch; or what a function gives that is called in here instead,
        where an engine that shards weights has the head's weight whole."""
        if callable(batch):
            return batch()
        if self.asks:
            with blamed(self.stage_plugin):
                figures = getattr(self.stage, self.asks)(policy=self.policy, batch=batch)
            return StepOutput(loss_sum=torch.zeros(()), count=0, per_example=figures)
        # The model's mode: an engine may switch to evaluation without this module, which it does not wrap itself.
        if self.routers is None or not self.model.training:
            return self._step(batch)
        with self.routers.recorded() as routing:
            output = self._step(batch)
        return self.routers.complete(output, routing)

    def _step(self, batch: Batch) -> StepOutput:
        self.checked_loss.latest = None
        with blamed(self.stage_plugin):
            output = self.stage.step(policy=self.policy, batch=batch, loss=self.checked_loss)
        self._check(output, batch)
        self.checked_loss.latest = None  # it would hold the graph until the next step
        return output

    def other_metrics(self, names: Collection[str]) -> BumbleError:
        """The error for metrics that only some micro-batches of a step have: of the loss, if it ever returned them all,
        else of the stage."""
        of_loss = self.checked_loss.metric_names.issuperset(names)
        fault = f"returned the metrics {', '.join(sorted(names))} for some micro-batches of a step alone"
        wants = "The same metrics are returned for each micro-batch (a weight of 0 leaves one out of a mean)"
        return breach(self.checked_loss.plugin if of_loss else self.stage_plugin, fault, wants)

    def _check(self, output: Any, batch: Batch) -> None:
        """Raises `PluginError` BC060 for the step's output, and names the loss for what came from it; in the first
        passes it reads numbers from the device too, BC082 for a stage that divides."""
        of_loss, first = self.checked_loss.latest, self._passes < READ_PASSES
        self._passes += 1
        wants_gradient = torch.is_grad_enabled() and (of_loss is None or of_loss[0].requires_grad)
        if fault := output_fault(output, wants_gradient=wants_gradient):
            raise breach(self.stage_plugin, fault, WANTS_STEP)
        count = output.count
        if (first or not isinstance(count, torch.Tensor)) and not 0 <= float(count) <= batch.count * (1 + 1e-6):
            unchanged = of_loss is not None and of_loss[1] is count
            culprit = self.checked_loss.plugin if unchanged else self.stage_plugin
            fault = f"counted {float(count):g} in a batch of {batch.count}"
            raise breach(culprit, fault, "A count is at most what the stage's examples state")
        if first and of_loss is not None and float(count) >= 2 and divided(output.loss_sum, *of_loss):
            fault = "divided the loss's sum by its count"
            raise breach(self.stage_plugin, fault, "A step returns the sum: the core divides", code="BC082")


def divided(total: torch.Tensor, given: torch.Tensor, count: Any) -> bool:
    """Whether a step's loss is its loss's sum over the count, and so a mean."""
    whole, of_loss = float(total.detach()), float(given.detach())
    return of_loss != 0 and abs(whole * float(count) / of_loss - 1) < 1e-3
