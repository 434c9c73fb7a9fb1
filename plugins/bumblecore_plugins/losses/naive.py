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

    def __call__(
        self, *, hidden: torch.Tensor, head: Head, targets: torch.Tensor, weights: torch.Tensor | None = None
    ) -> StepOutput:
        """`hidden`: (N, H), or logits (N, V) with a head without weight; `targets`: (N,) int64; `weights`: (N,), None
        for ones. The sum over N of weight × loss, and the sum of the weights."""
        logits = head.logits(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = _cross_entropy(logits, targets, weights)
        loss = nll
        if self.label_smoothing:
            loss = _cross_entropy(logits, targets, weights, self.label_smoothing)
        z_sum = None
        if self.z_loss:
            squares = torch.logsumexp(logits, dim=-1) ** 2
            z_sum = (squares if weights is None else squares * weights).sum()
            loss = loss + self.z_loss * z_sum
        count = count_of(targets, weights)
        return output(loss, nll, z_sum, count=count, z_loss=self.z_loss, options_on=loss is not nll)


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The sum over tokens, each times its weight."""
    if weights is None:
        return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights).sum()


def count_of(targets: torch.Tensor, weights: torch.Tensor | None) -> int | torch.Tensor:
    """What a token loss counts. The sum of weights stays a tensor: reading it would synchronize with the GPU."""
    return targets.numel() if weights is None else weights.detach().sum(dtype=torch.float64)


def output(
    loss: torch.Tensor,
    nll: torch.Tensor,
    z_sum: torch.Tensor | None,
    *,
    count: int | torch.Tensor,
    z_loss: float,
    options_on: bool,
) -> StepOutput:
    """The step output; where an option makes the loss differ from the negative log-likelihood, both are reported."""
    metrics = {}
    weight = float(count) if isinstance(count, int) else count
    if options_on:
        metrics["nll"] = Metric(total=nll.detach(), weight=weight)
    if z_sum is not None:
        metrics["z_loss"] = Metric(total=z_loss * z_sum.detach(), weight=weight)
    return StepOutput(loss_sum=loss, count=count, metrics=metrics)
