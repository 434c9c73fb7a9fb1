"""Built-in losses: `causal_lm` (fused, exact), its reference `causal_lm_naive`, eight over preference pairs, `kto`, and
`bradley_terry` over scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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


class BetaOptions(Options):
    """Of `hinge` and `apo_zero`, and what the other losses with a reference have too."""

    beta: float = Field(0.1, gt=0, description="β: factor on the log-ratios to the reference; more keeps closer to it.")


class SigmoidOptions(BetaOptions):
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="ε of conservative DPO: the share of labels taken to be wrong; 0 is plain DPO."
    )


class IpoOptions(Options):
    beta: float = Field(
        0.1, gt=0, description="τ: the difference of log-ratios per token is drawn to 1 / (2τ); more keeps it smaller."
    )


class RobustOptions(BetaOptions):
    label_smoothing: float = Field(0.1, gt=0, lt=0.5, description="ε: the probability that a label was flipped.")


class ExoOptions(BetaOptions):
    label_smoothing: float = Field(
        1e-3, gt=0, lt=0.5, description="ε: the rejected completion's probability in the label (1 − ε, ε)."
    )


class SimpoOptions(Options):
    beta: float = Field(2.0, gt=0, description="β: factor on the log-probabilities per token.")
    gamma: float = Field(1.0, ge=0, description="γ: the target margin between the rewards.")


class OrpoOptions(Options):
    beta: float = Field(0.1, gt=0, description="λ: weight of the odds ratio beside the supervised term.")


class KtoOptions(BetaOptions):
    desirable_weight: float = Field(1.0, gt=0, description="λ_D: weight of the desirable completions.")
    undesirable_weight: float = Field(1.0, gt=0, description="λ_U: weight of the undesirable completions.")


class BradleyTerryOptions(Options):
    center_coefficient: float = Field(
        0.0,
        ge=0,
        description="Weight of the squared sum of a pair's two scores, which keeps scores around 0 (0.01, say).",
    )


def build_fused(*, options: CausalLmOptions) -> Any:
    from bumblecore_plugins.losses.fused import FusedCausalLm

    return FusedCausalLm(label_smoothing=options.label_smoothing, z_loss=options.z_loss)


def build_naive(*, options: CausalLmOptions) -> Any:
    from bumblecore_plugins.losses.naive import NaiveCausalLm

    return NaiveCausalLm(label_smoothing=options.label_smoothing, z_loss=options.z_loss)


def build_preference(name: str, /, *, options: Any) -> Any:
    from bumblecore_plugins.losses.preference import make_loss

    return make_loss(name, **options.model_dump())


def build_kto(*, options: KtoOptions) -> Any:
    from bumblecore_plugins.losses.feedback import Kto

    return Kto(**options.model_dump())


def build_bradley_terry(*, options: BradleyTerryOptions) -> Any:
    from bumblecore_plugins.losses.reward import BradleyTerry

    return BradleyTerry(**options.model_dump())


def preference_record(
    name: str, summary: str, options: type[Options] = BetaOptions, *, needs_reference: bool = True
) -> LossRecord:
    return LossRecord(
        name=name,
        summary=summary,
        build=partial(build_preference, name),
        loss_kind="preference",
        options=options,
        needs_reference=needs_reference,
    )


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
        preference_record("sigmoid", "DPO: logistic loss of the difference of log-ratios.", SigmoidOptions),
        preference_record("hinge", "Hinge loss of the difference of log-ratios (SLiC, RSO)."),
        preference_record("ipo", "IPO: squared distance of the log-ratios per token from a target.", IpoOptions),
        preference_record("robust", "Robust DPO: unbiased where labels were flipped at a known rate.", RobustOptions),
        preference_record("exo_pair", "EXO: divergence of the policy's preference from the label's.", ExoOptions),
        preference_record("apo_zero", "APO-zero: raises chosen and lowers rejected completions, each on its own."),
        preference_record(
            "simpo",
            "SimPO: log-probabilities per token with a target margin, without a reference.",
            SimpoOptions,
            needs_reference=False,
        ),
        preference_record(
            "orpo",
            "ORPO: supervised term plus odds ratio, without a reference.",
            OrpoOptions,
            needs_reference=False,
        ),
        LossRecord(
            name="kto",
            summary="KTO: raises desirable and lowers undesirable completions, each against the KL to the reference.",
            build=build_kto,
            loss_kind="feedback",
            options=KtoOptions,
        ),
        LossRecord(
            name="bradley_terry",
            summary="Bradley-Terry: logistic loss of the difference of a pair's scores.",
            build=build_bradley_terry,
            loss_kind="reward",
            options=BradleyTerryOptions,
            needs_reference=False,
        ),
    ]
