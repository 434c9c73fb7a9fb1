"""Proves on a run's own first items that a loss returns a sum: the whole is what its two halves add up to.

The core divides a step's loss by the count of the whole step, over all micro-batches and ranks. A loss that returns a
mean then trains every item of a large micro-batch less than one of a small micro-batch, and nothing else shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch

from bumblecore_core.protocols import Loss
from bumblecore_core.run.blame import Plugin, breach
from bumblecore_core.run.checkpoint.streams import put_streams, take_streams
from bumblecore_core.toolkit.token_weights import TOLERANCE
from bumblecore_core.values import StepOutput

MOST_ITEMS = 64  # of a micro-batch: enough to tell, and never the memory of a whole micro-batch's logits
MOST_TRIES = 20
SMALLER_HALF = 0.2
"""The smaller half's share of the halves' sum from which on a batch can tell. The sum is then 1 (in units of the
halves' sum), and a mean, weighted or not, between the two halves: at most 0.8."""
ROUNDING = 0.1
"""Half of that distance. A sum of 64 losses in float32, from logits in bf16, is off by less than 0.01."""
WANTS = (
    "Return the sum over all items as loss_sum and their number (the sum of `weights`, if passed) as count: the core "
    "divides by the count of the step"
)


class Verdict(Enum):
    """What a batch tells."""

    SUM = "sum"
    MEAN = "mean"
    UNKNOWN = "unknown"


class SumCheck:
    """Looks at training batches until one of them decides. `make_loss` builds the loss anew: what a loss keeps between
    calls, and the run's random numbers, are not touched, and so no number of the training changes."""

    def __init__(self, plugin: Plugin, make_loss: Callable[[], Loss]) -> None:
        self._plugin, self._make_loss = plugin, make_loss
        self._tries = 0

    def decides(self, inputs: Mapping[str, Any]) -> bool:
        """Whether no further batch is needed: the loss of `inputs` is a sum, or it cannot be told.

        Raises `PluginError` BC082 for a mean, and for a count that does not add up. A loss that gives another value the
        second time, because it draws random numbers or keeps a state, is not judged; nor is one whose losses of a part
        of a batch raise, or that has neither a sum nor a mean (losses of other items as negatives, say).
        """
        items = _items(inputs)
        if items < 2:
            return False
        self._tries += 1
        device = next(value.device for value in inputs.values() if isinstance(value, torch.Tensor))
        streams = take_streams(device)
        try:
            fault, told = self._fault(inputs, min(items, MOST_ITEMS))
        except Exception:
            return True
        finally:
            put_streams(streams, device)
        if fault:
            raise breach(self._plugin, fault, WANTS, code="BC082")
        return told or self._tries >= MOST_TRIES

    @torch.no_grad()
    def _fault(self, inputs: Mapping[str, Any], items: int) -> tuple[str | None, bool]:
        """(what is wrong, whether this batch told anything)."""
        loss, middle = self._make_loss(), items // 2
        bounds = ((0, items), (0, middle), (middle, items))
        outputs = [loss(**_part(inputs, *bound)) for bound in bounds]
        whole, first, second = (float(output.loss_sum) for output in outputs)
        counts = [float(output.count) for output in outputs]
        most = _most(_part(inputs, 0, items), items)
        verdict = verdict_of(whole, first, second)
        fault = None
        if verdict is Verdict.MEAN:
            halves = f"{first:.4g} and {second:.4g} for their halves"
            fault = f"returned a mean, not a sum: {whole:.4g} for {items} items, {halves}"
        elif counts[0] > most * (1 + TOLERANCE) or not _add_up(*counts):
            fault = f"counted {counts[0]:g} for {items} items, {counts[1]:g} and {counts[2]:g} for their halves"
            fault += f", where weights add up to {most:g}" if most != items else ""
        if fault is not None and not _same(loss(**_part(inputs, 0, items)), outputs[0]):
            return None, False
        return fault, verdict is Verdict.SUM


def verdict_of(whole: float, first: float, second: float) -> Verdict:
    """What the losses of a batch and of its two halves say."""
    together = first + second
    if not math.isfinite(whole / together if together else math.nan):
        return Verdict.UNKNOWN
    share, smaller, larger = whole / together, *sorted((first / together, second / together))
    if smaller < SMALLER_HALF:  # of opposite signs as well
        return Verdict.UNKNOWN
    if abs(share - 1) <= ROUNDING:
        return Verdict.SUM
    return Verdict.MEAN if smaller * (1 - ROUNDING) <= share <= larger * (1 + ROUNDING) else Verdict.UNKNOWN


def _items(inputs: Mapping[str, Any]) -> int:
    """How many items a loss is called with: the first dimension, where all its tensors share one."""
    sizes = {value.shape[0] for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim}
    return sizes.pop() if len(sizes) == 1 else 0


def _most(inputs: Mapping[str, Any], items: int) -> float:
    """The largest count that the items allow: their number, or the sum of their weights."""
    weights = inputs.get("weights")
    return float(weights.double().sum()) if isinstance(weights, torch.Tensor) else items


def _add_up(whole: float, first: float, second: float) -> bool:
    return math.isclose(whole, first + second, rel_tol=1e-3, abs_tol=1e-6)


def _part(inputs: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The items from `start` on; numbers, and a head, are the same for each."""
    return {
        name: value[start:stop] if isinstance(value, torch.Tensor) and value.ndim else value
        for name, value in inputs.items()
    }


def _same(left: StepOutput, right: StepOutput) -> bool:
    return math.isclose(float(left.loss_sum), float(right.loss_sum), rel_tol=1e-3) and float(left.count) == float(
        right.count
    )
