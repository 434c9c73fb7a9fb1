"""Built-in stages: `pretrain` and `continue_pretrain` on text, `sft` on chats, `dpo` and `reward` on pairs, `kto` on
labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from pydantic import Field

from bumblecore_core import Options, StageContext, StageRecord, hookimpl

Reasoning: TypeAlias = Literal["keep", "drop"]
REASONING: Any = Field(
    "keep",
    description="Whether reasoning (reasoning_content, or <think>…</think> before a reply) is trained, or dropped.",
)


class TextOptions(Options):
    """Options of the stages that model plain text."""

    append_eos: bool = Field(True, description="Append the tokenizer's EOS token to each document.")


class SftOptions(Options):
    """Options of supervised fine-tuning."""

    train_on: Literal["all", "last"] = Field(
        "all", description="Which assistant turns are trained: all of them, or only the last of each conversation."
    )
    reasoning: Reasoning = REASONING


class DpoOptions(Options):
    """Options of direct preference optimisation."""

    reasoning: Reasoning = REASONING
    reference: str = Field(
        "start",
        min_length=1,
        description="The reference model: start (the model that training begins with), base (it without its adapter), "
        "none, or a model's directory. Losses without a reference ignore it.",
    )
    sft_weight: float = Field(
        0.0, ge=0, description="Weight of the chosen completion's negative log-likelihood per token (RPO's alpha)."
    )
    ld_alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Weight of a completion's tokens beyond the shorter one's length (LD-DPO); 1: all count alike.",
    )


class KtoOptions(Options):
    """Options of Kahneman-Tversky optimisation."""

    reasoning: Reasoning = REASONING
    reference: str = Field(
        "start",
        min_length=1,
        description="The reference model: start (the model that training begins with), base (it without its adapter), "
        "or a model's directory.",
    )
    kl: bool = Field(
        True,
        description="Compare with an estimate of the KL divergence to the reference, over the rows of an optimizer "
        "step (two or more), which takes a second completion for each; false compares with 0.",
    )


class RewardOptions(Options):
    """Options of reward models."""

    reasoning: Reasoning = REASONING


def build_text(*, options: TextOptions, context: StageContext) -> Any:
    """The stage of `pretrain` and `continue_pretrain`."""
    from bumblecore_plugins.stages.text import text_stage

    return text_stage(options, context)


def build_sft(*, options: SftOptions, context: StageContext) -> Any:
    """The stage of `sft`."""
    from bumblecore_plugins.stages.sft import sft_stage

    return sft_stage(options, context)


def build_dpo(*, options: DpoOptions, context: StageContext) -> Any:
    """The stage of `dpo`."""
    from bumblecore_plugins.stages.dpo import PreferenceStage

    return PreferenceStage(options, context)


def build_kto(*, options: KtoOptions, context: StageContext) -> Any:
    """The stage of `kto`."""
    from bumblecore_plugins.stages.kto import FeedbackStage

    return FeedbackStage(options, context)


def build_reward(*, options: RewardOptions, context: StageContext) -> Any:
    """The stage of `reward`."""
    from bumblecore_plugins.stages.reward import RewardStage

    return RewardStage(options, context)


@hookimpl
def bumble_stages() -> Sequence[StageRecord]:
    """Three stages whose loss is over tokens, one over pairs, one over labelled completions, one over scores."""
    return [
        StageRecord(
            name="pretrain",
            summary="Trains a model from random weights on plain text.",
            build=build_text,
            reads="text",
            loss_kind="token",
            default_loss="causal_lm",
            options=TextOptions,
            model_from="config",
            smooth=False,
        ),
        StageRecord(
            name="continue_pretrain",
            summary="Goes on training a model's weights on plain text.",
            build=build_text,
            reads="text",
            loss_kind="token",
            default_loss="causal_lm",
            options=TextOptions,
            smooth=False,
        ),
        StageRecord(
            name="sft",
            summary="Fine-tunes on conversations; only what the assistant says is trained.",
            build=build_sft,
            reads="chat",
            loss_kind="token",
            default_loss="causal_lm",
            options=SftOptions,
        ),
        StageRecord(
            name="dpo",
            summary="Aligns with preferences: pairs of a chosen and a rejected completion.",
            build=build_dpo,
            reads="preference",
            loss_kind="preference",
            default_loss="sigmoid",
            options=DpoOptions,
        ),
        StageRecord(
            name="kto",
            summary="Aligns with feedback: completions that are labelled desirable or undesirable.",
            build=build_kto,
            reads="feedback",
            loss_kind="feedback",
            default_loss="kto",
            options=KtoOptions,
        ),
        StageRecord(
            name="reward",
            summary="Trains a reward model: a score that is higher for chosen than for rejected completions.",
            build=build_reward,
            reads="preference",
            loss_kind="reward",
            default_loss="bradley_terry",
            options=RewardOptions,
            head="score",
        ),
    ]
