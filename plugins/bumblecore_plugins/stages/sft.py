"""Supervised fine-tuning: conversations, trained on what the assistant says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bumblecore_core import ChatSample, Dropped, RowError, StageContext, TokenExample
from bumblecore_core.toolkit.causal import CausalStage, Encoded, fit_spans
from bumblecore_core.toolkit.chat import ChatEncoder, EncodedChat, chat_encoder
from bumblecore_core.toolkit.turns import joined_turns

if TYPE_CHECKING:
    from bumblecore_plugins.stages import SftOptions

TURN_BY_TURN = "conversations of which each turn is a text of its own (the chat template rewrites earlier turns)"


def sft_stage(options: SftOptions, context: StageContext) -> CausalStage:
    """Raises `ModelError` BC022 (no chat template) or BC024 (generation marks that cannot be located)."""
    encoder = chat_encoder(context, train_on=options.train_on, reasoning=options.reasoning)
    return CausalStage(partial(_encode, encoder), context)


def _encode(encoder: ChatEncoder, samples: Sequence[ChatSample], context: StageContext) -> list[Encoded]:
    return [
        chats if isinstance(chats, Dropped | RowError) else _examples(chats, context.max_length)
        for chats in encoder.turns(samples)
    ]


def _examples(chats: Sequence[EncodedChat], max_length: int) -> Encoded:
    """One example per text of a conversation; those whose prompt does not fit are left out, all of them count as
    dropped."""
    fitted = [
        fit_spans(
            chat.input_ids,
            chat.spans,
            max_length=max_length,
            weights=chat.weights or None,
            warnings=chat.warnings,
        )
        for chat in chats
    ]
    examples = [one for one in fitted if isinstance(one, TokenExample)]
    if not examples:
        return next(one for one in fitted if isinstance(one, Dropped))
    if len(examples) < len(fitted):
        examples[0] = replace(examples[0], truncated=True)
    if len(chats) > 1:
        examples[0] = replace(examples[0], warnings=(*examples[0].warnings, TURN_BY_TURN))
    return joined_turns(examples, max_length=max_length) if len(examples) > 1 else examples[0]
