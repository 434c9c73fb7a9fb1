"""Reward modelling: a score for each of two completions of one prompt, trained by the difference of the two.

A sequence's score is that of its last token, as transformers' `…ForSequenceClassification` takes it: the last token of
what the chat template gives for the whole conversation. A pair is laid out as one of `dpo` is: the longest common
beginning of the two sequences stands once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bumblecore_core import (
    Batch,
    ConfigError,
    Dropped,
    PreferenceSample,
    RowError,
    StageContext,
    StepOutput,
    TokenExample,
    one,
)
from bumblecore_core.toolkit.chat import EncodedChat, chat_encoder
from bumblecore_core.toolkit.packing import pack
from bumblecore_plugins.stages.pair_layout import (
    COLUMNS,
    EQUAL,
    SIDES,
    encoded_pairs,
    preview_pair,
    shared_length,
    warnings_of,
)

if TYPE_CHECKING:
    from bumblecore_core.toolkit.policy import Policy
    from bumblecore_plugins.stages import RewardOptions

TOO_LONG = Dropped(code="BC028", reason="a sequence does not fit data.max_length")
PAD_FIX = "Set pad_token in its tokenizer_config.json to a token that no conversation ends with"


class RewardStage:
    """See `bumblecore_core.protocols.Stage`. Raises `ModelError` BC022 or BC024 as `ChatEncoder` does, and BC039, a
    `ConfigError`, where the tokenizer has no pad token, or one that a conversation ends with: the saved model would
    score another token than the one that was trained."""

    columns: tuple[str, ...] = COLUMNS
    shares_prefixes = True

    def __init__(self, options: RewardOptions, context: StageContext) -> None:
        self._context = context
        self._encoder = chat_encoder(context, reasoning=options.reasoning)
        if context.tokenizer.pad_token_id is None:
            problem = "the tokenizer has no pad token, by which a reward model tells a sequence's last token"
            raise one(ConfigError, "BC039", problem, PAD_FIX, field="model.tokenizer")

    def encode(self, *, samples: Sequence[PreferenceSample]) -> list[TokenExample | Dropped | RowError]:
        """One example per pair. A pair of which a sequence is too long is dropped: cut, its last token would not be the
        one that is scored when the model is used."""
        return [
            self._pair(*pair) if isinstance(pair, tuple) else pair for pair in encoded_pairs(self._encoder, samples)
        ]

    def _pair(self, chosen: EncodedChat, rejected: EncodedChat) -> TokenExample | Dropped:
        sequences = [chosen.input_ids, rejected.input_ids]
        if max(map(len, sequences)) > self._context.max_length:
            return TOO_LONG
        if np.array_equal(*sequences):
            return EQUAL
        if any(ids[-1] == self._context.tokenizer.pad_token_id for ids in sequences):
            token = self._context.tokenizer.pad_token
            problem = f"conversations end with the pad token {token!r}, which a reward model takes for padding"
            raise one(ConfigError, "BC039", problem, PAD_FIX, field="model.tokenizer")
        columns: dict[str, Any] = {}
        for side, chat in zip(SIDES, (chosen, rejected), strict=True):
            columns[f"{side}_ids"] = chat.input_ids
            columns[f"{side}_spans"] = np.asarray(chat.spans, dtype=np.int32).reshape(-1)
        length = sum(map(len, sequences)) - shared_length(*sequences)
        return TokenExample(columns=columns, length=length, count=1, warnings=warnings_of(chosen, rejected))

    def collate(
        self, *, examples: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int], counts: Sequence[int]
    ) -> Batch:
        """The batch of P pairs: two documents each, of which the last tokens are scored."""
        documents: list[np.ndarray] = []
        shared_prefixes: list[int] = []
        for example in examples:
            chosen, rejected = example["chosen_ids"], example["rejected_ids"]
            shared = shared_length(chosen, rejected)
            documents += [chosen, rejected[shared:]]
            shared_prefixes += [0, shared]
        batch = pack(documents, rows=rows, count=sum(counts), shared_prefixes=shared_prefixes)
        return replace(batch, head_positions=len(documents))

    def step(self, *, policy: Policy, batch: Batch, loss: Any) -> StepOutput:
        """The loss over (P,) scores of both sides."""
        scores = policy.scores(batch=batch, positions=batch.cu_seqlens[1:].long() - 1)
        chosen, rejected = scores.view(-1, 2).unbind(1)
        output: StepOutput = loss(chosen=chosen, rejected=rejected)
        return output

    def preview(self, *, example: Mapping[str, np.ndarray]) -> Sequence[tuple[str, bool]]:
        """The chosen sequence with its completion marked, then the rejected completion."""
        return preview_pair(self._context.tokenizer, example)
