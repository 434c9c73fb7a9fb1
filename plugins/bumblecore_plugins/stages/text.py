"""Language modelling on plain text: each document from its first token to its EOS."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from bumblecore_core import Dropped, ModelError, RowError, StageContext, TextSample, TokenExample, one
from bumblecore_core.toolkit.causal import CausalStage, causal_example
from bumblecore_core.toolkit.tokenizers import exact_encoder, wants_bos

if TYPE_CHECKING:
    from bumblecore_plugins.stages import TextOptions


def text_stage(options: TextOptions, context: StageContext) -> CausalStage:
    """Raises `ModelError` BC064 where EOS is to be appended and the tokenizer has none."""
    tokenizer = context.tokenizer
    if options.append_eos and tokenizer.eos_token_id is None:
        raise one(
            ModelError,
            "BC064",
            "the tokenizer has no EOS token to end documents with",
            "set eos_token in its tokenizer_config.json, or stage.append_eos: false",
            field="stage.append_eos",
        )
    before = [tokenizer.bos_token_id] if wants_bos(tokenizer) else []
    after = [tokenizer.eos_token_id] if options.append_eos else []
    return CausalStage(partial(_encode, exact_encoder(tokenizer), before, after), context)


def _encode(
    encoder: Tokenizer, before: list[int], after: list[int], samples: Sequence[TextSample], context: StageContext
) -> list[list[TokenExample] | Dropped | RowError]:
    try:
        encodings = encoder.encode_batch_fast([sample.text for sample in samples], add_special_tokens=False)
    except TypeError:  # a lone surrogate somewhere: find the rows
        if len(samples) > 1:
            return [entry for sample in samples for entry in _encode(encoder, before, after, [sample], context)]
        return [RowError(code="BC020", field="text", problem="a lone surrogate in the text", fix="remove it")]
    return [_document(before, encoding.ids, after, context.max_length) for encoding in encodings]


def _document(before: list[int], ids: list[int], after: list[int], max_length: int) -> list[TokenExample] | Dropped:
    """The document in pieces of at most `max_length` tokens.

    No token is lost and none occurs twice. The first token of each piece is context alone: nothing before it in its
    piece could predict it.
    """
    tokens = np.asarray([*before, *ids, *after], dtype=np.int32)
    if not ids or len(tokens) < 2:
        return Dropped(code="BC066", reason="no supervised token")
    cuts = list(range(0, len(tokens), max_length))
    if len(tokens) - cuts[-1] == 1 and len(cuts) > 1:
        cuts[-1] -= 1  # a piece of one token could train nothing: it gets company from the piece before
    return [causal_example(piece, [(0, len(piece))]) for piece in np.split(tokens, cuts[1:])]
