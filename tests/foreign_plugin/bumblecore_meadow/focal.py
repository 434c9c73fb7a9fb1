"""Focal loss (Lin et al. 2017, eq. 4)."""

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from bumblecore_core import Metric, StepOutput


@dataclass(frozen=True)
class Focal:
    gamma: float

    def __call__(self, *, hidden, head, targets):
        losses = cross_entropy(head.logits(hidden).float(), targets, reduction="none")
        weighted = (1 - (-losses).exp()) ** self.gamma * losses
        metrics = {"cross_entropy": Metric(total=losses.detach().sum(), weight=targets.numel())}
        return StepOutput(loss_sum=weighted.sum(), count=targets.numel(), metrics=metrics)
