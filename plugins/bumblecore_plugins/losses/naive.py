"""The cross entropy of the next token as one would write it down: what the fused loss is tested against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from bumblecore_core import Metric, StepOutput
from bumblecore_core.toolkit.policy import Head


@dataclass(frozen=True, kw_only=True)
class NaiveCausalLm:
    """Cross entropy over the full logits in float32 (float64 stays float64).

    `label_smoothing` ε: (1 − ε)·nll + ε·mean over the vocabulary of −log p (Szegedy et al. 2016, torch's convention).
    `z_loss` ζ: adds ζ·logsumexp² per token (PaLM, Chowdhery et al. 2022, section 5).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __call__(self, *, hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> StepOutput:
        """`hidden`: (N, H), or logits (N, V) with a head without weight; `targets`: (N,) int64. Sum over N, and N."""
        logits = head.logits(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = functional.cross_entropy(logits, targets, reduction="sum")
        loss = nll
        if self.label_smoothing:
            smoothing = self.label_smoothing
            loss = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        z_sum = (torch.logsumexp(logits, dim=-1) ** 2).sum() if self.z_loss else None
        if z_sum is not None:
            loss = loss + self.z_loss * z_sum
        return output(loss, nll, z_sum, count=targets.numel(), z_loss=self.z_loss, options_on=loss is not nll)


def output(
    loss: torch.Tensor, nll: torch.Tensor, z_sum: torch.Tensor | None, *, count: int, z_loss: float, options_on: bool
) -> StepOutput:
    """The step output; where an option makes the loss differ from the negative log-likelihood, both are reported."""
    metrics = {}
    if options_on:
        metrics["nll"] = Metric(total=nll.detach(), weight=float(count))
    if z_sum is not None:
        metrics["z_loss"] = Metric(total=z_loss * z_sum.detach(), weight=float(count))
    return StepOutput(loss_sum=loss, count=count, metrics=metrics)
