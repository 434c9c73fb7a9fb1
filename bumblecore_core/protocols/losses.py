"""Losses over tokens, over pairs, over labelled completions, and over scores of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from bumblecore_core.values import StepOutput

if TYPE_CHECKING:
    import torch

    from bumblecore_core.toolkit.policy import Head


class TokenLoss(Protocol):
    """A loss over supervised positions (`LossRecord(kind="token")`)."""

    def __call__(
        self, *, hidden: torch.Tensor, head: Head, targets: torch.Tensor, weights: torch.Tensor | None = None
    ) -> StepOutput:
        """`hidden`: (N, H) last hidden states; `targets`: (N,) int64 token ids; `head.logits(hidden)`: (N, V);
        `weights`: (N,) float32 factors on the positions' losses, all positive; None: all 1.

        N may be 0. Returns the *sum* over the N positions of weight × loss, and the sum of the weights (N without any)
        as the count; means among the metrics are weighted alike. `weights` is passed only for a batch that has any, so
        a loss may lack the keyword: it is refused where the data holds weights other than 1 (BC085).
        """
        ...


class PreferenceLoss(Protocol):
    """A loss over pairs (`LossRecord(loss_kind="preference")`)."""

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
        """`chosen`, `rejected`, and those of the reference model: (P,) float64 log-probabilities of P completions,
        summed over tokens; the reference's are None where the record does not need them. `chosen_lengths`,
        `rejected_lengths`: (P,) how many tokens were summed. Returns the sum over pairs, and P."""
        ...


class FeedbackLoss(Protocol):
    """A loss over completions that are labelled one by one (`LossRecord(loss_kind="feedback")`)."""

    def __call__(
        self, *, completion: torch.Tensor, reference: torch.Tensor | None, desirable: torch.Tensor, kl: torch.Tensor
    ) -> StepOutput:
        """`completion`, and `reference`, that of the reference model (None where the record does not need it): (R,)
        float64 log-probabilities of R completions, summed over tokens. `desirable`: (R,) bool. `kl`: how far policy
        and reference are apart, a scalar of nats without a gradient; 0 where that is not estimated. Returns the sum
        over rows, and R."""
        ...


class RewardLoss(Protocol):
    """A loss over the scores that a reward model gives (`LossRecord(loss_kind="reward")`)."""

    def __call__(self, *, chosen: torch.Tensor, rejected: torch.Tensor) -> StepOutput:
        """`chosen`, `rejected`: (P,) float32 scores of the two sequences of P pairs. Returns the sum over pairs, and
        P."""
        ...


Loss: TypeAlias = TokenLoss | PreferenceLoss | FeedbackLoss | RewardLoss
