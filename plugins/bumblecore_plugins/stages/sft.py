"""Supervised fine-tuning: conversations, trained on what the assistant says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bumblecore_core import ChatSample, Dropped, RowError, StageContext, TokenExample
from bumblecore_core.toolkit.causal import CausalStage, fit_spans
from bumblecore_core.toolkit.chat import ChatEncoder

if TYPE_CHECKING:
    from bumblecore_plugins.stages import SftOptions


def sft_stage(options: SftOptions, context: StageContext) -> CausalStage:
    """Raises `ModelError` BC022 (no chat template) or BC024 (generation marks that cannot be located)."""
    encoder = ChatEncoder(context.tokenizer, train_on=options.train_on, strict=context.strict)
    return CausalStage(partial(_encode, encoder), context)


def _encode(
    encoder: ChatEncoder, samples: Sequence[ChatSample], context: StageContext
) -> list[TokenExample | Dropped | RowError]:
    return [
        fit_spans(chat.input_ids, chat.spans, max_length=context.max_length, warnings=chat.warnings)
        if not isinstance(chat, Dropped | RowError)
        else chat
        for chat in encoder(samples)
    ]
