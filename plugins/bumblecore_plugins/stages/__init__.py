"""Built-in stages: `pretrain` and `continue_pretrain` on text, `sft` on conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from bumblecore_core import Options, StageContext, StageRecord, hookimpl


class TextOptions(Options):
    """Options of the stages that model plain text."""

    append_eos: bool = Field(True, description="Append the tokenizer's EOS token to each document.")


class SftOptions(Options):
    """Options of supervised fine-tuning."""

    train_on: Literal["all", "last"] = Field(
        "all", description="Which assistant turns are trained: all of them, or the last of each conversation alone."
    )


def build_text(*, options: TextOptions, context: StageContext) -> Any:
    """The stage of `pretrain` and `continue_pretrain`."""
    from bumblecore_plugins.stages.text import text_stage

    return text_stage(options, context)


def build_sft(*, options: SftOptions, context: StageContext) -> Any:
    """The stage of `sft`."""
    from bumblecore_plugins.stages.sft import sft_stage

    return sft_stage(options, context)


@hookimpl
def bumble_stages() -> Sequence[StageRecord]:
    """The three stages whose loss is over tokens."""
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
    ]
