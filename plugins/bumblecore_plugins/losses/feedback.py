"""The loss over labelled completions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bumblecore_core import Metric, StepOutput


@dataclass(frozen=True, kw_only=True)
class Kto:
    """λ_D (1 − σ(β(r − z₀))) of a desirable completion, λ_U (1 − σ(β(z₀ − r))) of an undesirable one: KTO (Ethayarajh
    et al. 2024). r is the log-ratio of policy and reference, z₀ is `kl`. Rewards are β r."""

    beta: float
    desirable_weight: float
    undesirable_weight: float

    def __call__(
        self, *, completion: torch.Tensor, reference: torch.Tensor, desirable: torch.Tensor, kl: torch.Tensor
    ) -> StepOutput:
        """The sum over R rows, and R. `*/chosen` are means over the desirable rows, `*/rejected` over the others."""
        ratios = completion - reference
        chosen = desirable.to(ratios.dtype)
        weights = chosen * self.desirable_weight + (1 - chosen) * self.undesirable_weight
        # 1 − σ(x) is σ(−x), which keeps its digits where it is small.
        losses = weights * torch.sigmoid((1 - 2 * chosen) * self.beta * (ratios - kl))
        metrics = {}
        with torch.no_grad():
            for figure, values in (("rewards", self.beta * ratios), ("logps", completion)):
                for side, mask in (("chosen", desirable), ("rejected", ~desirable)):
                    total = torch.where(mask, values, 0.0).sum()
                    metrics[f"{figure}/{side}"] = Metric(total=total, weight=mask.sum())
        return StepOutput(loss_sum=losses.sum(), count=losses.numel(), metrics=metrics)
