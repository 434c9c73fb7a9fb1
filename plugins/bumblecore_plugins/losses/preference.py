"""Losses over preference pairs, each as its formula over (P,) tensors.

In the formulas w is the chosen completion and l the rejected one, π the policy and π₀ the reference, |y| a length in
tokens, σ the logistic function. log π(y) is the sum over the completion's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from bumblecore_core import Metric, StepOutput


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Scores of P pairs. `chosen`, `rejected`: (P,) log π(y) − log π₀(y) in a loss with a reference, log π(y) / |y| in
    one without; `chosen_lengths`, `rejected_lengths`: (P,) tokens."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor

    @property
    def margin(self) -> torch.Tensor:
        """(P,): Δ = chosen − rejected."""
        return self.chosen - self.rejected


def sigmoid(pairs: Pairs, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """−(1 − ε) log σ(βΔ) − ε log σ(−βΔ): DPO (Rafailov et al. 2023, equation 7), with ε > 0 conservative DPO (Mitchell
    2023), where a share ε of the labels is taken to be wrong."""
    logits = beta * pairs.margin
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def hinge(pairs: Pairs, *, beta: float) -> torch.Tensor:
    """max(0, 1 − βΔ): the hinge loss of SLiC-HF (Zhao et al. 2023) on log-ratios, as RSO has it (Liu et al. 2024,
    "hinge-norm", where β is γ)."""
    return torch.relu(1 - beta * pairs.margin)


def ipo(pairs: Pairs, *, beta: float) -> torch.Tensor:
    """(Δ̄ − 1 / (2β))²: IPO (Azar et al. 2023, equation 17, where β is τ), Δ̄ being the difference of log-ratios *per
    token*. The equation has their sum; the mean keeps the target 1 / (2β) one for completions of any length."""
    margin = _per_token(pairs.chosen, pairs.chosen_lengths) - _per_token(pairs.rejected, pairs.rejected_lengths)
    return (margin - 1 / (2 * beta)) ** 2


def robust(pairs: Pairs, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """(−(1 − ε) log σ(βΔ) + ε log σ(−βΔ)) / (1 − 2ε): robust DPO (Chowdhury et al. 2024). Where each label was flipped
    with probability ε, its expected value is that of DPO on the true labels. It has no lower bound."""
    logits = beta * pairs.margin
    clean, flipped = -logsigmoid(logits), -logsigmoid(-logits)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def exo_pair(pairs: Pairs, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """σ(βΔ) (log σ(βΔ) − log(1 − ε)) + σ(−βΔ) (log σ(−βΔ) − log ε): EXO's loss of preference pairs (Ji et al. 2024,
    equation 16), the divergence from the policy's preference to the label's, (1 − ε, ε)."""
    logits = beta * pairs.margin
    preferred = torch.sigmoid(logits) * (logsigmoid(logits) - math.log1p(-label_smoothing))
    return preferred + torch.sigmoid(-logits) * (logsigmoid(-logits) - math.log(label_smoothing))


def apo_zero(pairs: Pairs, *, beta: float) -> torch.Tensor:
    """σ(−β r_w) + σ(β r_l), r being the log-ratios: APO-zero (D'Oosterlinck et al. 2024, equation 7) plus 1, so that
    it is not negative. Raises chosen completions and lowers rejected ones, each on its own."""
    return torch.sigmoid(-beta * pairs.chosen) + torch.sigmoid(beta * pairs.rejected)


def simpo(pairs: Pairs, *, beta: float, gamma: float) -> torch.Tensor:
    """−log σ(β log π(w) / |w| − β log π(l) / |l| − γ): SimPO (Meng et al. 2024, equation 6)."""
    return -logsigmoid(beta * pairs.margin - gamma)


def orpo(pairs: Pairs, *, beta: float) -> torch.Tensor:
    """−log π(w) / |w| − λ log σ(log odds(w) − log odds(l)): ORPO (Hong et al. 2024, equations 6 and 7, where β is λ),
    with odds(y) = p / (1 − p) of p = exp(log π(y) / |y|). The first term is that of supervised fine-tuning, a mean over
    the chosen completion's tokens."""
    return -pairs.chosen - beta * logsigmoid(_log_odds(pairs.chosen) - _log_odds(pairs.rejected))


def _log_odds(log_p: torch.Tensor) -> torch.Tensor:
    """log(p / (1 − p)), p being at most the largest number below 1 that the dtype has: 1 has no odds."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return log_p - torch.log(-torch.expm1(log_p))


def _per_token(total: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return total / lengths.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class ReferenceLoss:
    """A `PreferenceLoss` whose `formula` sees log-ratios to the reference. Rewards are β × the log-ratios."""

    formula: Callable[[Pairs], torch.Tensor]
    beta: float

    def __call__(
        self,
        *,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        reference_chosen: torch.Tensor,
        reference_rejected: torch.Tensor,
        chosen_lengths: torch.Tensor,
        rejected_lengths: torch.Tensor,
    ) -> StepOutput:
        """The sum over P pairs, and P; `logps/*` are means over pairs of the sums over tokens."""
        pairs = Pairs(
            chosen=chosen - reference_chosen,
            rejected=rejected - reference_rejected,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
        )
        return _output(self.formula(pairs), pairs, self.beta, chosen, rejected)


@dataclass(frozen=True, kw_only=True)
class FreeLoss:
    """A `PreferenceLoss` without a reference; its `formula` sees log-probabilities per token. Rewards are β × these."""

    formula: Callable[[Pairs], torch.Tensor]
    beta: float

    def __call__(
        self,
        *,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        reference_chosen: torch.Tensor | None,
        reference_rejected: torch.Tensor | None,
        chosen_lengths: torch.Tensor,
        rejected_lengths: torch.Tensor,
    ) -> StepOutput:
        """The sum over P pairs, and P; `logps/*` are means over pairs of the means over tokens."""
        pairs = Pairs(
            chosen=_per_token(chosen, chosen_lengths),
            rejected=_per_token(rejected, rejected_lengths),
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
        )
        return _output(self.formula(pairs), pairs, self.beta, pairs.chosen, pairs.rejected)


WITH_REFERENCE = (sigmoid, hinge, ipo, robust, exo_pair, apo_zero)
WITHOUT_REFERENCE = (simpo, orpo)


def make_loss(name: str, *, beta: float, **others: Any) -> ReferenceLoss | FreeLoss:
    """The loss of this name; `beta` and `others` are its formula's options."""
    for kind, formulas in ((ReferenceLoss, WITH_REFERENCE), (FreeLoss, WITHOUT_REFERENCE)):
        for formula in formulas:
            if formula.__name__ == name:
                return kind(formula=partial(formula, beta=beta, **others), beta=beta)
    raise ValueError(f"no preference loss is called {name}")


def _output(
    losses: torch.Tensor, pairs: Pairs, beta: float, chosen: torch.Tensor, rejected: torch.Tensor
) -> StepOutput:
    """Sum, count, and means over pairs of rewards and of the log-probabilities `chosen` and `rejected`."""
    with torch.no_grad():
        better, worse = beta * pairs.chosen, beta * pairs.rejected
        figures = {
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "rewards/accuracies": (better > worse).to(better.dtype),
            "rewards/margins": better - worse,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        count = losses.numel()
        metrics = {name: Metric(total=values.sum(), weight=float(count)) for name, values in figures.items()}
    return StepOutput(loss_sum=losses.sum(), count=count, metrics=metrics)
