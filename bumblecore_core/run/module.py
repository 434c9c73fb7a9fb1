"""The one module that engines wrap: model, stage and loss behind `forward(batch) -> StepOutput`.

DDP prepares its reducer, and ZeRO its parameter traces, in the wrapped module's own `forward`; so nothing of the model
is ever called around the wrapper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bumblecore_core.protocols import Loss, Stage
from bumblecore_core.run.blame import blamed
from bumblecore_core.toolkit.policy import Policy
from bumblecore_core.values import Batch, StepOutput


class TrainModule(torch.nn.Module):
    """`model` holds the parameters and is what is saved; `policy` is the same model as the stage sees it.

    `used_outside`: parameters that are used outside their own modules, such as the head's by a fused loss.
    The policy is set once the engine has prepared the module: it is probed on the final device, in the final dtype.
    """

    policy: Policy
    asks_reference = False
    """Whether `forward` gives the stage's `reference_step` of a batch, instead of its loss."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        stage: Stage,
        stage_name: str,
        loss: Loss,
        loss_name: str,
        used_outside: Sequence[torch.nn.Parameter] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.used_outside = tuple(used_outside)
        self.stage, self.stage_name = stage, stage_name
        self.loss, self.loss_name = loss, loss_name

    def forward(self, batch: Batch | Callable[[], Any]) -> Any:
        """Loss sum, count and metrics of one micro-batch; or what a function gives that is called in here instead,
        where an engine that shards weights has the head's weight whole."""
        if callable(batch):
            return batch()
        with blamed("stages", self.stage_name):
            if self.asks_reference:
                figures = self.stage.reference_step(policy=self.policy, batch=batch)  # type: ignore[attr-defined]
                return StepOutput(loss_sum=torch.zeros(()), count=0, per_example=figures)
            return self.stage.step(policy=self.policy, batch=batch, loss=self._blamed_loss)

    def _blamed_loss(self, **inputs: Any) -> StepOutput:
        with blamed("losses", self.loss_name):
            return self.loss(**inputs)
