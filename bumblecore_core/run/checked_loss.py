"""A run's loss as its stage calls it: what it returns is held to the contract, and remembered for who is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bumblecore_core.protocols import Loss
from bumblecore_core.run.blame import Plugin, blamed, breach
from bumblecore_core.run.returned import WANTS_LOSS, output_fault
from bumblecore_core.run.sum_check import SumCheck
from bumblecore_core.toolkit.policy import Head
from bumblecore_core.toolkit.token_weights import accepts_weights
from bumblecore_core.values import StepOutput


class CheckedLoss:
    """Calls `loss`. Raises `PluginError` BC060 where it raises or returns the wrong thing, BC082 where it is no sum,
    BC085 for weights other than 1 where it does not accept any."""

    def __init__(self, loss: Loss, plugin: Plugin, sum_check: SumCheck | None) -> None:
        self._loss, self._sum_check = loss, sum_check
        self._accepts_weights = accepts_weights(loss)
        self.plugin = plugin
        self.latest: tuple[torch.Tensor, Any] | None = None
        """Sum and count that the last call returned: its stage may change the object that holds them."""
        self.metric_names: set[str] = set()
        """The names of all metrics that it ever returned."""
        self.watch: Any = None
        """Called with the inputs and the output of each call, where the cause of a non-finite loss is looked for."""

    def __call__(self, **inputs: Any) -> StepOutput:
        if not self._accepts_weights and "weights" in inputs:
            self._require_ones(inputs.pop("weights"))
        with blamed(self.plugin):
            output = self._loss(**inputs)
        wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(inputs))
        if fault := output_fault(output, wants_gradient=wants_gradient):
            raise breach(self.plugin, fault, WANTS_LOSS)
        if self._sum_check is not None and wants_gradient and self._sum_check.decides(inputs):
            self._sum_check = None
        self.latest = (output.loss_sum, output.count)
        self.metric_names.update(output.metrics)
        if self.watch is not None:
            self.watch(inputs, output)
        return output

    def _require_ones(self, weights: torch.Tensor | None) -> None:
        if weights is not None and bool((weights != 1).any()):
            fault = "does not accept `weights`, and the data has tokens with a weight other than 1"
            wants = "Remove the weights of messages from the data"
            raise breach(self.plugin, fault, wants, code="BC085")


def tensors_of(inputs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that a loss is called with, those of a head too."""
    for value in inputs.values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Head):
            yield from (part for part in (value.weight, value.bias) if part is not None)
