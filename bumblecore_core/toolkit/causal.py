"""The stage of every next-token objective: documents with spans of trained tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from bumblecore_core.errors import RowError
from bumblecore_core.toolkit.packing import offsets, pack, ranges
from bumblecore_core.values import Batch, Dropped, Sample, StepOutput, TokenExample

if TYPE_CHECKING:
    from bumblecore_core.toolkit.policy import Policy

Encoded: TypeAlias = TokenExample | Sequence[TokenExample] | Dropped | RowError
Spans: TypeAlias = Sequence[tuple[int, int]]


class Context(Protocol):
    """What an encode function may use: `bumblecore_core.StageContext` has it."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def max_length(self) -> int: ...
    @property
    def strict(self) -> bool: ...


Encode: TypeAlias = Callable[[Sequence[Any], Any], Sequence[Encoded]]


class CausalStage:
    """A `Stage` for a token loss: each example is one document, and `spans` says which of its tokens are trained.

    `encode(samples, context)` gives one entry per sample; make examples with `causal_example` or `fit_spans`. A
    module-level function or a `functools.partial` of one keeps the stage picklable for worker processes.
    """

    columns: tuple[str, ...] = ("input_ids", "spans")

    def __init__(self, encode: Encode, context: Context) -> None:
        self._encode = encode
        self._context = context

    def encode(self, *, samples: Sequence[Sample]) -> Sequence[Encoded]:
        """One entry per sample, as the encode function gives them."""
        return self._encode(samples, self._context)

    def collate(
        self, *, examples: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int], counts: Sequence[int]
    ) -> Batch:
        """The batch, with two extras. `positions` (N,) int64: places in the concatenated sequence whose next token, of
        the same document, is trained; `targets` (N,) int64: the ids of these next tokens."""
        documents = [example["input_ids"] for example in examples]
        spans = [example["spans"].reshape(-1, 2) for example in examples]
        starts = offsets(np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)))[:-1]
        edges = np.concatenate(spans).astype(np.int64)
        origin = np.repeat(starts, [len(span) for span in spans])
        # A document's first token has no position before it that could predict it.
        targets_at = ranges(np.maximum(edges[:, 0], 1) + origin, edges[:, 1] + origin)
        count = sum(counts)
        if len(targets_at) != count:
            raise ValueError(f"rows {list(rows)}: {len(targets_at)} trained tokens, but their stored count is {count}")
        ids = np.concatenate(documents)
        extras = {"positions": targets_at - 1, "targets": ids[targets_at].astype(np.int64)}
        return pack(documents, rows=rows, count=count, extras=extras)

    def step(self, *, policy: Policy, batch: Batch, loss: Callable[..., StepOutput]) -> StepOutput:
        """The loss over the hidden states at `positions` (N, H) against `targets` (N,)."""
        hidden, head = policy.project(batch=batch, positions=batch.extras["positions"])
        return loss(hidden=hidden, head=head, targets=batch.extras["targets"])

    def preview(self, *, example: Mapping[str, np.ndarray]) -> Sequence[tuple[str, bool]]:
        """The example as (text, trained) segments in order. A document's first token counts as not trained."""
        ids = example["input_ids"].tolist()
        segments: list[tuple[str, bool]] = []
        at = 0
        for start, end in example["spans"].reshape(-1, 2).tolist():
            start = max(start, 1)
            segments += [(self._text(ids, at, start), False), (self._text(ids, start, end), True)]
            at = end
        segments.append((self._text(ids, at, len(ids)), False))
        return [segment for segment in segments if segment[0]]

    def _text(self, ids: list[int], start: int, end: int) -> str:
        """Tokens [start, end) as they read after the tokens before them (decoders strip a leading space at a start)."""
        if end <= start:
            return ""
        decode = self._context.tokenizer.decode
        before, upto = (decode(part, skip_special_tokens=False) for part in (ids[:start], ids[:end]))
        if not upto.startswith(before):  # a character's bytes lie on both sides
            return str(decode(ids[start:end], skip_special_tokens=False))
        return str(upto[len(before) :])


def causal_example(
    input_ids: Sequence[int] | np.ndarray, spans: Spans, *, truncated: bool = False, warnings: tuple[str, ...] = ()
) -> TokenExample:
    """The example of one document. `spans`: trained tokens as ascending, disjoint [start, end).

    Its count is that of the shifted labels: a span that begins at 0 loses the document's first token.
    """
    flat = np.asarray(spans, dtype=np.int32).reshape(-1)
    count = sum(end - max(start, 1) for start, end in spans if end > max(start, 1))
    ids = np.asarray(input_ids, dtype=np.int32)
    columns: dict[str, Any] = {"input_ids": ids, "spans": flat}
    return TokenExample(columns=columns, length=len(ids), count=count, truncated=truncated, warnings=warnings)


def fit_spans(
    input_ids: np.ndarray, spans: Spans, *, max_length: int, warnings: tuple[str, ...] = ()
) -> TokenExample | Dropped:
    """The example cut to `max_length` tokens: after the last span that fits whole, else inside the first span.

    Dropped (BC028) where not even the first span's first target fits: the prompt alone is too long.
    """
    if len(input_ids) <= max_length:
        return causal_example(input_ids, spans, warnings=warnings)
    whole = [(start, end) for start, end in spans if end <= max_length]
    if any(end > max(start, 1) for start, end in whole):
        return causal_example(input_ids[: whole[-1][1]], whole, truncated=True, warnings=warnings)
    start = next((start for start, end in spans if end > max(start, 1)), max_length)
    if max(start, 1) >= max_length:
        return Dropped(code="BC028", reason="the prompt does not fit data.max_length")
    return causal_example(input_ids[:max_length], [(start, max_length)], truncated=True, warnings=warnings)
