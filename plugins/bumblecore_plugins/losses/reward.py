"""The loss over a reward model's scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from bumblecore_core import Metric, StepOutput


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """−log σ(s_w − s_l) + c (s_w + s_l)²: the negative log-likelihood of the labels in the model of Bradley and Terry,
    as Stiennon et al. 2020 and Ouyang et al. 2022 train reward models. It does not change where a number is added to
    all scores of a prompt; the second term (Eisenstein et al. 2023) settles that: scores of a pair are about 0."""

    center_coefficient: float

    def __call__(self, *, chosen: torch.Tensor, rejected: torch.Tensor) -> StepOutput:
        """The sum over P pairs, and P; figures are means over pairs."""
        losses = -logsigmoid(chosen - rejected)
        if self.center_coefficient:
            losses = losses + self.center_coefficient * (chosen + rejected) ** 2
        count = losses.numel()
        with torch.no_grad():
            figures = {
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
                "rewards/margins": chosen - rejected,
            }
            metrics = {name: Metric(total=values.sum(), weight=float(count)) for name, values in figures.items()}
        return StepOutput(loss_sum=losses.sum(), count=count, metrics=metrics)
