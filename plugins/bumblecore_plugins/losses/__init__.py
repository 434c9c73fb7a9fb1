"""Built-in losses: `causal_lm` (fused, exact) and its reference `causal_lm_naive`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from bumblecore_core import LossRecord, Options, hookimpl

BUMBLECORE_HOOK_API = 1


class CausalLmOptions(Options):
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread evenly over the vocabulary."
    )
    z_loss: float = Field(
        0.0,
        ge=0,
        description="Coefficient of logsumexp(logits)² per token, which keeps logits from drifting (PaLM: 1e-4).",
    )


def build_fused(*, options: CausalLmOptions) -> Any:
    from bumblecore_plugins.losses.fused import FusedCausalLm

    return FusedCausalLm(label_smoothing=options.label_smoothing, z_loss=options.z_loss)


def build_naive(*, options: CausalLmOptions) -> Any:
    from bumblecore_plugins.losses.naive import NaiveCausalLm

    return NaiveCausalLm(label_smoothing=options.label_smoothing, z_loss=options.z_loss)


@hookimpl
def bumble_losses() -> Sequence[LossRecord]:
    return [
        LossRecord(
            name="causal_lm",
            summary="Cross entropy of the next token, fused with the head: exact, never holds the full logits.",
            build=build_fused,
            loss_kind="token",
            options=CausalLmOptions,
        ),
        LossRecord(
            name="causal_lm_naive",
            summary="Cross entropy of the next token over the full logits in float32: the reference for causal_lm.",
            build=build_naive,
            loss_kind="token",
            options=CausalLmOptions,
        ),
    ]
