"""Kahneman-Tversky optimisation: completions that are labelled one by one, desirable or not.

The loss compares a row's log-ratio of policy and reference with z₀, an estimate of how far the two are apart: the mean
log-ratio of the micro-batch's prompts, each with the completion of another row. Which row that is, is settled when rows
are tokenized, so that the reference's figures of both completions are computed once. A row is laid out as a preference
pair is: `[prompt | completion | other completion]`.
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
from bumblecore_core.toolkit.chat import ChatEncoder, EncodedChat
from bumblecore_core.toolkit.logprobs import TokenLogprobs
from bumblecore_core.toolkit.packing import offsets, pack, ranges
from bumblecore_plugins.stages.dpo import TOO_LONG
from bumblecore_plugins.stages.pair_layout import Layout, lay_out, named_side, shared_length, summed

if TYPE_CHECKING:
    from bumblecore_core.toolkit.policy import Policy
    from bumblecore_plugins.stages import KtoOptions

SIDE = {"row": "chosen", "other": "rejected"}
"""What each of a row's two sequences is called in the layout of pairs."""


class FeedbackStage:
    """See `bumblecore_core.protocols.Stage`. Raises `ModelError` BC022 or BC024 as `ChatEncoder` does."""

    shares_prefixes = True

    def __init__(self, options: KtoOptions, context: StageContext) -> None:
        self._context = context
        self._encoder = ChatEncoder(context.tokenizer, strict=context.strict)
        self._logprobs = TokenLogprobs()
        self._sides = ("row", "other") if options.kl else ("row",)
        self.columns = ("label", *(f"{side}_{what}" for side in self._sides for what in ("ids", "spans")))
        self.least_rows = len(self._sides)
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
        chats = [ChatSample(messages=(*one.prompt, *other.completion), tools=one.tools) for one, other in pairs]
        return [named_side(chat, "completion", at) for chat, at in zip(self._encoder(chats, first), first, strict=True)]

    def _example(self, row: EncodedChat, other: EncodedChat | None, *, label: bool) -> TokenExample | Dropped:
        limit = self._context.max_length
        columns: dict[str, Any] = {"label": [int(label)]}
        columns |= {"row_ids": row.input_ids[:limit], "row_spans": _fitting(row, limit)}
        if not len(columns["row_spans"]):
            return TOO_LONG
        length = len(columns["row_ids"])
        if "other" in self._sides:
            if other is None:  # the row itself, of which nothing is scored, keeps the layout one of pairs
                other = EncodedChat(input_ids=row.input_ids, spans=())
            columns |= {"other_ids": other.input_ids[:limit], "other_spans": _fitting(other, limit)}
            length += len(columns["other_ids"]) - shared_length(columns["row_ids"], columns["other_ids"])
        return TokenExample(
            columns=columns, length=length, count=1, truncated=len(row.input_ids) > limit, warnings=row.warnings
        )

    def collate(
        self, *, examples: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int], counts: Sequence[int]
    ) -> Batch:
        """The batch of R rows, laid out as `PreferenceStage` does: a row's own completion is its chosen side, the other
        one its rejected side; the chosen sides' tokens come first among those that are scored. Extras, beside the
        layout's: `desirable` (R,) bool, and the reference's figures (R,)."""
        if "other" in self._sides:
            pairs = [{f"{SIDE[s]}_{w}": row[f"{s}_{w}"] for s in SIDE for w in ("ids", "spans")} for row in examples]
            layout = lay_out(pairs, late_weight=1.0)
        else:
            layout = _rows_alone(examples)
        extras = dict(
            _own_first(layout.extras), desirable=np.concatenate([row["label"] for row in examples]).astype(bool)
        )
        for name in self.reference.columns:
            if name in examples[0]:
                extras[name] = np.concatenate([row[name] for row in examples])
        batch = pack(
            layout.documents, rows=rows, count=sum(counts), extras=extras, shared_prefixes=layout.shared_prefixes
        )
        return replace(batch, head_positions=len(extras["positions"]))

    def step(self, *, policy: Policy, batch: Batch, loss: Any) -> StepOutput:
        """The loss over (R,) log-probabilities, labels and z₀, which is this micro-batch's on this rank."""
        summed = self.summed(policy, batch)
        reference = batch.extras.get("reference_row")
        desirable = batch.extras["desirable"]
        kl, figures = summed["row"].new_zeros(()), {}
        if "reference_other" in batch.extras:
            # Both are 0 for a row without another completion.
            ratios = summed["other"].detach() - batch.extras["reference_other"]
            others = (batch.extras["rejected_lengths"] > 0).sum()
            kl = (ratios.sum() / others.clamp(min=1)).clamp(min=0)
            figures = {"kl": Metric(total=kl * len(desirable), weight=float(len(desirable)))}
        output: StepOutput = loss(completion=summed["row"], reference=reference, desirable=desirable, kl=kl)
        output = replace(output, loss_sum=output.loss_sum.float())
        return replace(output, metrics={**output.metrics, **figures})

    def reference_step(self, *, policy: Policy, batch: Batch) -> dict[str, torch.Tensor]:
        """What the reference model says of each row."""
        return {f"reference_{side}": summed for side, summed in self.summed(policy, batch).items()}

    def preview(self, *, example: Mapping[str, np.ndarray]) -> Sequence[tuple[str, bool]]:
        """The row with its completion marked, and its label."""
        decode, ids = self._context.tokenizer.decode, example["row_ids"].tolist()
        start = int(example["row_spans"][0])
        prompt, whole = decode(ids[:start]), decode(ids)
        completion = whole[len(prompt) :] if whole.startswith(prompt) else decode(ids[start:])
        return [(prompt, False), (completion, True), (f"\n({'' if example['label'][0] else 'un'}desirable)", False)]

    def summed(self, policy: Policy, batch: Batch) -> dict[str, torch.Tensor]:
        """For each side the (R,) log-probabilities of its completions. The head computes those of the other completions
        without a gradient, since z₀ has none."""
        hidden, head = policy.project(batch=batch, positions=batch.extras["positions"])
        targets, own = batch.extras["targets"], len(batch.extras["chosen_at"])
        tokens = self._logprobs(hidden=hidden[:own], head=head, targets=targets[:own])
        if own < len(targets):
            with torch.no_grad():
                others = self._logprobs(hidden=hidden[own:], head=head, targets=targets[own:])
            tokens = torch.cat([tokens, others])
        return {side: summed(tokens, batch, SIDE[side], weighted=False) for side in self._sides}


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


def _own_first(extras: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The extras of a layout with the chosen sides' tokens before the others among the N scored ones."""
    count, own = len(extras["positions"]), extras["chosen_at"]
    order = np.concatenate([own, np.setdiff1d(np.arange(count), own)])
    moved = np.empty(count, dtype=np.int64)
    moved[order] = np.arange(count)
    sides = {name: moved[at] for name, at in extras.items() if name.endswith("_at")}
    return {**extras, **sides, "positions": extras["positions"][order], "targets": extras["targets"][order]}


def _rows_alone(examples: Sequence[Mapping[str, np.ndarray]]) -> Layout:
    """The layout of rows that have no other completion beside them."""
    documents = [row["row_ids"] for row in examples]
    spans = [row["row_spans"].reshape(-1, 2).astype(np.int64) for row in examples]
    scored = [ranges(edges[:, 0], edges[:, 1]) for edges in spans]
    starts = offsets(np.asarray([len(ids) for ids in documents]))[:-1]
    places = [start + at - 1 for start, at in zip(starts, scored, strict=True)]
    extras = {
        "positions": np.concatenate(places),
        "targets": np.concatenate([ids[at] for ids, at in zip(documents, scored, strict=True)]).astype(np.int64),
        "chosen_at": np.arange(sum(map(len, scored))),
        "chosen_lengths": np.asarray([len(at) for at in scored], dtype=np.int64),
    }
    return Layout(documents=documents, shared_prefixes=[0] * len(documents), extras=extras)
