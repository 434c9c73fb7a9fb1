"""Direct preference optimisation: pairs of completions of one prompt, trained by the difference of their probabilities.

A pair is laid out as `[prompt | chosen | rejected]` without padding: the longest common beginning of the two sequences
stands once, the rejected one goes on from it with positions that continue there. The head computes the completions'
tokens alone; a token that both completions have in common, in the common beginning, is computed once and counts for
both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bumblecore_core import (
    Batch,
    Dropped,
    Metric,
    PreferenceSample,
    RowError,
    StageContext,
    StepOutput,
    TokenExample,
)
from bumblecore_core.protocols import Reference
from bumblecore_core.toolkit.chat import EncodedChat, chat_encoder
from bumblecore_core.toolkit.logprobs import TokenLogprobs
from bumblecore_core.toolkit.packing import pack
from bumblecore_plugins.stages.pair_layout import (
    COLUMNS,
    EQUAL,
    SIDES,
    Layout,
    encoded_pairs,
    lay_out,
    preview_pair,
    shared_length,
    summed,
    warnings_of,
)

if TYPE_CHECKING:
    from bumblecore_core.toolkit.policy import Policy
    from bumblecore_plugins.stages import DpoOptions

REFERENCE = ("reference_chosen", "reference_rejected")
TOO_LONG = Dropped(code="BC028", reason="the prompt does not fit data.max_length")


class PreferenceStage:
    """See `bumblecore_core.protocols.Stage`. Raises `ModelError` BC022 or BC024 as `ChatEncoder` does."""

    columns: tuple[str, ...] = COLUMNS
    shares_prefixes = True

    def __init__(self, options: DpoOptions, context: StageContext) -> None:
        self._options, self._context = options, context
        self._encoder = chat_encoder(context, reasoning=options.reasoning)
        self._logprobs = TokenLogprobs()
        self.reference = None if options.reference == "none" else Reference(model=options.reference, columns=REFERENCE)

    def encode(self, *, samples: Sequence[PreferenceSample]) -> list[TokenExample | Dropped | RowError]:
        """One example per pair, whose sequences are cut at the same length where the longer one does not fit."""
        return [
            self._pair(*pair) if isinstance(pair, tuple) else pair for pair in encoded_pairs(self._encoder, samples)
        ]

    def _pair(self, chosen: EncodedChat, rejected: EncodedChat) -> TokenExample | Dropped:
        limit = self._context.max_length
        columns: dict[str, np.ndarray] = {}
        for name, chat in zip(SIDES, (chosen, rejected), strict=True):
            spans = [(max(start, 1), min(end, limit)) for start, end in chat.spans if min(end, limit) > max(start, 1)]
            if not spans:
                return TOO_LONG
            columns[f"{name}_ids"] = chat.input_ids[:limit]
            columns[f"{name}_spans"] = np.asarray(spans, dtype=np.int32).reshape(-1)
        one, other = columns["chosen_ids"], columns["rejected_ids"]
        if np.array_equal(one, other):
            return EQUAL
        return TokenExample(
            columns=columns,  # type: ignore[arg-type]
            length=len(one) + len(other) - shared_length(one, other),
            count=1,
            truncated=max(len(chosen.input_ids), len(rejected.input_ids)) > limit,
            warnings=warnings_of(chosen, rejected),
        )

    def collate(
        self, *, examples: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int], counts: Sequence[int]
    ) -> Batch:
        """The batch of P pairs. Extras, for each side: `SIDE_at` indices of its tokens among the N scored positions,
        `SIDE_lengths` (P,) how many there are, `SIDE_weights` float32; `positions`, `targets` (N,); and the reference's
        log-probabilities (P,) where they were computed."""
        layout: Layout = lay_out(examples, late_weight=self._options.ld_alpha)
        extras: dict[str, np.ndarray] = dict(layout.extras)
        if REFERENCE[0] in examples[0]:
            extras |= {name: np.concatenate([example[name] for example in examples]) for name in REFERENCE}
        batch = pack(
            layout.documents, rows=rows, count=sum(counts), extras=extras, shared_prefixes=layout.shared_prefixes
        )
        return replace(batch, head_positions=len(layout.extras["positions"]))

    def step(self, *, policy: Policy, batch: Batch, loss: Any) -> StepOutput:
        """The loss over (P,) log-probabilities of both sides, and the chosen completions' likelihood beside it where
        `sft_weight` asks for that."""
        tokens = self._tokens(policy, batch)
        sides = {side: summed(tokens, batch, side) for side in SIDES}
        given = {name: batch.extras.get(name) for name in REFERENCE}
        lengths = {f"{side}_lengths": batch.extras[f"{side}_lengths"] for side in sides}
        output: StepOutput = loss(**sides, **given, **lengths)
        output = replace(output, loss_sum=output.loss_sum.float())
        if not self._options.sft_weight:
            return output
        lengths_of_chosen = batch.extras["chosen_lengths"]
        nll = -(summed(tokens, batch, "chosen", weighted=False) / lengths_of_chosen).sum()
        metrics = {**output.metrics, "nll": Metric(total=nll.detach(), weight=float(len(lengths_of_chosen)))}
        return replace(output, loss_sum=output.loss_sum + self._options.sft_weight * nll.float(), metrics=metrics)

    def reference_step(self, *, policy: Policy, batch: Batch) -> dict[str, torch.Tensor]:
        """What the reference model says of each pair."""
        tokens = self._tokens(policy, batch)
        return {f"reference_{side}": summed(tokens, batch, side) for side in SIDES}

    def preview(self, *, example: Mapping[str, np.ndarray]) -> Sequence[tuple[str, bool]]:
        """The chosen sequence with its completion marked, then the rejected completion."""
        return preview_pair(self._context.tokenizer, example)

    def _tokens(self, policy: Policy, batch: Batch) -> torch.Tensor:
        """(N,) log-probabilities at the scored positions."""
        hidden, head = policy.project(batch=batch, positions=batch.extras["positions"])
        return self._logprobs(hidden=hidden, head=head, targets=batch.extras["targets"])
