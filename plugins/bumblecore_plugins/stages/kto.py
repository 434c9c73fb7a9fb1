"""Kahneman-Tversky optimisation: completions that are labelled one by one, desirable or not.

The loss compares a row's log-ratio of policy and reference with z₀, an estimate of how far the two are apart: the mean
log-ratio of the optimizer step's prompts, each with the completion of another row. Which row that is, is settled when
rows are tokenized, so that the reference's figures of both completions are computed once.

z₀ has no gradient, and is needed before the first row of the step is trained. So a batch holds its rows'
`[prompt | completion]`, and beside them, among the extras, `[prompt | other completion]` of each row: these go through
the model in a pass of their own, without gradients, over all micro-batches of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bumblecore_core import (
    Batch,
    ChatSample,
    Dropped,
    FeedbackSample,
    Metric,
    RowError,
    StageContext,
    StepOutput,
    TokenExample,
)
from bumblecore_core.protocols import Reference
from bumblecore_core.toolkit.chat import EncodedChat, chat_encoder
from bumblecore_core.toolkit.logprobs import TokenLogprobs
from bumblecore_core.toolkit.packing import offsets, pack, ranges
from bumblecore_core.toolkit.preview import marked
from bumblecore_plugins.stages.dpo import TOO_LONG
from bumblecore_plugins.stages.pair_layout import named_side, warnings_of

if TYPE_CHECKING:
    from bumblecore_core.toolkit.policy import Policy
    from bumblecore_plugins.stages import KtoOptions

SUMS = ("kl_sum", "kl_rows")
"""Sum of the log-ratios of other completions, and how many they are."""
LAID_OUT = ("input_ids", "position_ids", "cu_seqlens")
SCORED = ("positions", "targets", "lengths")


class FeedbackStage:
    """See `bumblecore_core.protocols.Stage`. Raises `ModelError` BC022 or BC024 as `ChatEncoder` does."""

    def __init__(self, options: KtoOptions, context: StageContext) -> None:
        self._context = context
        self._encoder = chat_encoder(context, reasoning=options.reasoning)
        self._logprobs = TokenLogprobs()
        self._sides = ("row", "other") if options.kl else ("row",)
        self.columns = ("label", *(f"{side}_{what}" for side in self._sides for what in ("ids", "spans")))
        self.least_rows = len(self._sides)
        self.statistics = SUMS if options.kl else ()
        self.reference = Reference(model=options.reference, columns=tuple(f"reference_{side}" for side in self._sides))

    def encode(self, *, samples: Sequence[FeedbackSample]) -> list[TokenExample | Dropped | RowError]:
        """One example per row. Its other completion is one of these samples', so examples depend on what is encoded
        together. A row without one, because no other sample has another prompt, has no part in z₀."""
        found: list[Any] = self._encoded(samples, samples)
        usable = [at for at, chat in enumerate(found) if isinstance(chat, EncodedChat)]
        others = self._others([samples[at] for at in usable]) if "other" in self._sides else [None] * len(usable)
        for at, other in zip(usable, others, strict=True):
            found[at] = self._example(found[at], other, label=samples[at].label)
        return found

    def _others(self, samples: Sequence[FeedbackSample]) -> list[EncodedChat | None]:
        sources = other_rows(samples)
        chats = self._encoded(samples, [samples[source] for source in sources])
        own = [source == at for at, source in enumerate(sources)]
        return [
            None if alone or not isinstance(chat, EncodedChat) else chat for alone, chat in zip(own, chats, strict=True)
        ]

    def _encoded(
        self, prompts: Sequence[FeedbackSample], completions: Sequence[FeedbackSample]
    ) -> list[EncodedChat | Dropped | RowError]:
        """The prompts, with the tools, of the ones and the completions of the others."""
        pairs = list(zip(prompts, completions, strict=True))
        first = [len(one.prompt) for one in prompts]
        chats = [
            ChatSample(messages=(*one.prompt, *other.completion), tools=one.tools, template_kwargs=one.template_kwargs)
            for one, other in pairs
        ]
        return [named_side(chat, "completion", at) for chat, at in zip(self._encoder(chats, first), first, strict=True)]

    def _example(self, row: EncodedChat, other: EncodedChat | None, *, label: bool) -> TokenExample | Dropped:
        limit = self._context.max_length
        columns: dict[str, Any] = {"label": [int(label)]}
        columns |= {"row_ids": row.input_ids[:limit], "row_spans": _fitting(row, limit)}
        if not len(columns["row_spans"]):
            return TOO_LONG
        if "other" in self._sides:
            if other is None:  # a token of which nothing is scored
                other = EncodedChat(input_ids=row.input_ids[:1], spans=())
            columns |= {"other_ids": other.input_ids[:limit], "other_spans": _fitting(other, limit)}
        return TokenExample(
            columns=columns,
            length=len(columns["row_ids"]),
            count=1,
            truncated=len(row.input_ids) > limit,
            warnings=warnings_of(row),
        )

    def collate(
        self, *, examples: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int], counts: Sequence[int]
    ) -> Batch:
        """The batch of R rows. Extras: `positions`, `targets` (N,) of the completions' tokens and `lengths` (R,) of how
        many each row has; the same of the other completions, with the tensors of their own batch, under `other_…`;
        `desirable` (R,) bool; and the reference's figures (R,)."""
        batch, extras = _packed(examples, "row", rows, sum(counts))
        if "other" in self._sides:
            other, scored = _packed(examples, "other", rows, 0)
            extras |= {f"other_{name}": value for name, value in scored.items()}
            extras |= {f"other_{name}": getattr(other, name) for name in LAID_OUT}
        extras["desirable"] = torch.from_numpy(np.concatenate([row["label"] for row in examples]).astype(bool))
        for name in self.reference.columns:
            if name in examples[0]:
                extras[name] = torch.from_numpy(np.concatenate([row[name] for row in examples]))
        return replace(batch, extras=extras, head_positions=len(extras["positions"]))

    def step(self, *, policy: Policy, batch: Batch, loss: Any) -> StepOutput:
        """The loss over (R,) log-probabilities, labels and z₀, of which the step's sums are among the extras."""
        completion = self._summed(policy, batch, batch.extras)
        reference, desirable = batch.extras.get("reference_row"), batch.extras["desirable"]
        kl, figures = completion.new_zeros(()), {}
        if "reference_other" in batch.extras:
            total, rows = (batch.extras[name] for name in SUMS)
            kl = (total / rows.clamp(min=1)).clamp(min=0)
            figures = {"kl": Metric(total=kl * len(desirable), weight=float(len(desirable)))}
        output: StepOutput = loss(completion=completion, reference=reference, desirable=desirable, kl=kl)
        output = replace(output, loss_sum=output.loss_sum.float())
        return replace(output, metrics={**output.metrics, **figures})

    def statistics_step(self, *, policy: Policy, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum of the other completions' log-ratios, and their number, which a row without one has no part in. Of a
        loss without a reference both are 0."""
        if "reference_other" not in batch.extras:
            return {name: torch.zeros((), dtype=torch.float64) for name in SUMS}
        ratios = self._summed_others(policy, batch) - batch.extras["reference_other"]
        return dict(zip(SUMS, (ratios.sum(), (batch.extras["other_lengths"] > 0).sum()), strict=True))

    def reference_step(self, *, policy: Policy, batch: Batch) -> dict[str, torch.Tensor]:
        """What the reference model says of each row."""
        figures = {"reference_row": self._summed(policy, batch, batch.extras)}
        return {**figures, "reference_other": self._summed_others(policy, batch)} if "other" in self._sides else figures

    def preview(self, *, example: Mapping[str, np.ndarray]) -> Sequence[tuple[str, bool]]:
        """The row with its completion marked, and its label."""
        segments = marked(self._context.tokenizer, example["row_ids"].tolist(), example["row_spans"])
        return [*segments, (f"\n({'' if example['label'][0] else 'un'}desirable)", False)]

    def _summed_others(self, policy: Policy, batch: Batch) -> torch.Tensor:
        """(R,) log-probabilities of the other completions, 0 for a row without one."""
        extras = batch.extras
        laid_out = {name: extras[f"other_{name}"] for name in LAID_OUT}
        lengths = tuple(laid_out["cu_seqlens"].diff().tolist())
        other = Batch(**laid_out, document_lengths=lengths, rows=batch.rows, count=0)
        return self._summed(policy, other, {name: extras[f"other_{name}"] for name in SCORED})

    def _summed(self, policy: Policy, batch: Batch, scored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(R,) float64 log-probabilities of completions, each a sum over its tokens."""
        hidden, head = policy.project(batch=batch, positions=scored["positions"])
        tokens = self._logprobs(hidden=hidden, head=head, targets=scored["targets"])
        found: torch.Tensor = torch.segment_reduce(tokens.double(), "sum", lengths=scored["lengths"], unsafe=True)
        return found


def other_rows(samples: Sequence[FeedbackSample]) -> list[int]:
    """For each sample, where its other completion comes from: the nearest sample before it, the first ones' from the
    end, whose prompt is another; itself where there is none. The completions are so the same ones as the samples'."""
    found = list(range(len(samples)))
    last = None
    for at in (*found, *found):  # twice around: only then it is known what comes before the first ones
        if samples[at].prompt != samples[at - 1].prompt:
            last = (at - 1) % len(samples)
        found[at] = at if last is None else last
    return found


def _fitting(chat: EncodedChat, limit: int) -> np.ndarray:
    """The spans as [start, end, …], cut at `limit` tokens; a sequence's first token cannot be scored."""
    cut = [(max(start, 1), min(end, limit)) for start, end in chat.spans]
    return np.asarray([span for span in cut if span[0] < span[1]], dtype=np.int32).reshape(-1)


def _packed(
    examples: Sequence[Mapping[str, np.ndarray]], side: str, rows: Sequence[int], count: int
) -> tuple[Batch, dict[str, torch.Tensor]]:
    """One side's documents as a batch, and which of its tokens are scored (see `collate`)."""
    documents = [row[f"{side}_ids"] for row in examples]
    spans = [row[f"{side}_spans"].reshape(-1, 2).astype(np.int64) for row in examples]
    scored = [ranges(edges[:, 0], edges[:, 1]) for edges in spans]
    starts = offsets(np.asarray([len(ids) for ids in documents]))[:-1]
    places = [start + at - 1 for start, at in zip(starts, scored, strict=True)]
    targets = np.concatenate([ids[at] for ids, at in zip(documents, scored, strict=True)]).astype(np.int64)
    found = (np.concatenate(places), targets, np.asarray([len(at) for at in scored], dtype=np.int64))
    tensors = dict(zip(SCORED, map(torch.from_numpy, found), strict=True))
    return pack(documents, rows=rows, count=count), tensors
