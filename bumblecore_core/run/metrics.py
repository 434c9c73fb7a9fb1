"""Reduction of what micro-batches report, over a window and over ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from bumblecore_core.protocols import Engine
from bumblecore_core.values import Metric, StepOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bumblecore_core.run.module import TrainModule


class WindowMetrics:
    """Collects the outputs of one window's micro-batches on this rank; `reduce` is a collective."""

    def __init__(self, module: TrainModule | None = None) -> None:
        self._outputs: list[tuple[StepOutput, bool]] = []
        self._module = module

    def add(self, output: StepOutput, *, counts: bool) -> None:
        """Takes a micro-batch's output; a filler's (`counts=False`) contributes names but no numbers. Raises
        `PluginError` BC060 for other metrics than those of the window's first output."""
        if self._module is not None and self._outputs:
            names = self._outputs[0][0].metrics.keys()
            if names != output.metrics.keys():
                raise self._module.other_metrics(names ^ output.metrics.keys())
        self._outputs.append((output, counts))

    def finite(self) -> bool:
        """Whether every counted loss on this rank is finite."""
        return all(math.isfinite(float(output.loss_sum)) for output, counts in self._outputs if counts)

    def latest(self) -> set[str]:
        """Names of the metrics that hold as they are last (`reduce="last"`), and are not averaged over steps."""
        return {name for name, metric in self._outputs[0][0].metrics.items() if metric.reduce == "last"}

    def reduce(self, engine: Engine, extra: Sequence[float] = ()) -> tuple[float, float, dict[str, float], list[float]]:
        """(loss sum, count, metrics, extra summed over ranks), each over all ranks' micro-batches.

        Every rank must have seen the same metric names, which holds since every rank runs the same stage and loss.
        """
        names = sorted(self._outputs[0][0].metrics)
        kept = [output for output, counts in self._outputs if counts]
        columns: list[torch.Tensor | float] = [
            _sum([output.loss_sum for output in kept]),
            _sum([output.count for output in kept]),
        ]
        for name in names:
            metrics = [output.metrics[name] for output in kept]
            columns += _local(metrics, engine.rank)
        after_metrics, assignments = len(columns), self._assignments(kept)
        columns += [] if assignments is None else assignments.flatten().tolist()
        totals = engine.sum_over_ranks([float(value) for value in columns] + [float(value) for value in extra])
        reduced = {
            name: _value(self._outputs[0][0].metrics[name].reduce, *totals[2 + 2 * at : 4 + 2 * at])
            for at, name in enumerate(names)
        }
        if assignments is not None:
            summed = torch.tensor(totals[after_metrics : len(columns)], dtype=torch.float64)
            reduced |= expert_load(summed.view(assignments.shape))
        return totals[0], totals[1], reduced, totals[len(columns) :]

    def _assignments(self, kept: Sequence[StepOutput]) -> torch.Tensor | None:
        """(layers, experts): this rank's assignments of tokens to experts; None for a model without routers."""
        first = self._outputs[0][0].expert_assignments
        if first is None:
            return None
        found = [output.expert_assignments for output in kept if output.expert_assignments is not None]
        return torch.stack(found).sum(0) if found else torch.zeros_like(first)


def expert_load(assignments: torch.Tensor) -> dict[str, float]:
    """The smallest and the largest share of a layer's assignments that an expert has, over all layers.

    `assignments`: (layers, experts), the tokens × top-k assignments of an optimizer step.
    """
    shares = assignments / assignments.sum(-1, keepdim=True).clamp(min=1)
    return {"expert_load/min": float(shares.min()), "expert_load/max": float(shares.max())}


def _sum(values: Sequence[torch.Tensor | float]) -> torch.Tensor | float:
    total: torch.Tensor | float = 0.0
    for value in values:
        total = total + (value.detach().double() if isinstance(value, torch.Tensor) else value)
    return total


def _local(metrics: Sequence[Metric], rank: int) -> list[torch.Tensor | float]:
    """(total, weight) that this rank adds to the sum over ranks."""
    if metrics and metrics[0].reduce == "last":
        return [_sum([metrics[-1].total]), 1.0] if rank == 0 else [0.0, 0.0]
    return [_sum([metric.total for metric in metrics]), _sum([metric.weight for metric in metrics])]


def _value(reduce: str, total: float, weight: float) -> float:
    if reduce == "mean":
        return total / weight if weight else math.nan
    return total
