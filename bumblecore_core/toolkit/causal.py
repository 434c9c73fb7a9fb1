"""The stage of every next-token objective: documents with spans of trained tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from bumblecore_core.errors import RowError
from bumblecore_core.toolkit.packing import offsets, pack, ranges
from bumblecore_core.toolkit.preview import marked
from bumblecore_core.toolkit.special_texts import SpecialTokens
from bumblecore_core.toolkit.token_weights import as_count, checked_weights, from_column, same_count, to_column
from bumblecore_core.toolkit.turns import branches
from bumblecore_core.values import Batch, Dropped, Sample, StepOutput, TokenExample

if TYPE_CHECKING:
    from bumblecore_core.toolkit.policy import Policy

Encoded: TypeAlias = TokenExample | Sequence[TokenExample] | Dropped | RowError
Spans: TypeAlias = Sequence[tuple[int, int]]
Weights: TypeAlias = Sequence[float] | np.ndarray


class Context(Protocol):
    """What an encode function may use: `bumblecore_core.StageContext` has it."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def max_length(self) -> int: ...
    @property
    def strict(self) -> bool: ...
    @property
    def template_kwargs(self) -> Mapping[str, Any]: ...
    @property
    def template_date(self) -> str | None: ...
    @property
    def special_tokens(self) -> SpecialTokens: ...


_NONE = np.zeros(0, dtype=np.int32)

Encode: TypeAlias = Callable[[Sequence[Any], Any], Sequence[Encoded]]


class CausalStage:
    """A `Stage` for a token loss: each example is one document, and `spans` says which of its tokens are trained.
    `weights`: of each span, float32 bits in an int32 column, which is empty where all are 1; `prefixes`: see
    `toolkit.turns`, empty for an example of one document.

    `encode(samples, context)` gives one entry per sample; make examples with `causal_example` or `fit_spans`. A
    module-level function or a `functools.partial` of one keeps the stage picklable for worker processes.
    """

    columns: tuple[str, ...] = ("input_ids", "spans", "weights", "prefixes")
    shares_prefixes = True

    def __init__(self, encode: Encode, context: Context) -> None:
        self._encode = encode
        self._context = context

    def encode(self, *, samples: Sequence[Sample]) -> Sequence[Encoded]:
        """One entry per sample, as the encode function gives them."""
        return self._encode(samples, self._context)

    def collate(
        self, *, examples: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int], counts: Sequence[float]
    ) -> Batch:
        """The batch, with two extras. `positions` (N,) int64: places in the concatenated sequence whose next token, of
        the same document, is trained; `targets` (N,) int64: the ids of these next tokens. A third where some example
        has weights: `weights` (N,) float32, of these next tokens."""
        wholes = [example["input_ids"] for example in examples]
        spans = [example["spans"].reshape(-1, 2) for example in examples]
        starts = offsets(np.fromiter(map(len, wholes), dtype=np.int64, count=len(wholes)))[:-1]
        edges = np.concatenate(spans).astype(np.int64)
        origin = np.repeat(starts, [len(span) for span in spans])
        # A document's first token has no position before it that could predict it.
        first, last = np.maximum(edges[:, 0], 1), edges[:, 1]
        targets_at = ranges(first + origin, last + origin)
        ids = np.concatenate(wholes)
        documents, prefixes, positions = _documents(examples, starts, targets_at)
        extras = {"positions": positions, "targets": ids[targets_at].astype(np.int64)}
        total: float = len(targets_at)
        weighted = any(len(example["weights"]) for example in examples)
        if weighted:
            of_spans = [from_column(example["weights"], len(own)) for example, own in zip(examples, spans, strict=True)]
            extras["weights"] = np.repeat(np.concatenate(of_spans), np.maximum(last - first, 0))
            total = float(extras["weights"].sum(dtype=np.float64))
        count = sum(counts)
        if not same_count(total, count):
            raise ValueError(f"rows {list(rows)}: trained tokens count {total:g}, but their stored count is {count:g}")
        batch = pack(documents, rows=rows, count=count, extras=extras, shared_prefixes=prefixes)
        batch.items = len(targets_at) if weighted else None
        return batch

    def step(self, *, policy: Policy, batch: Batch, loss: Callable[..., StepOutput]) -> StepOutput:
        """The loss over the hidden states at `positions` (N, H) against `targets` (N,), with the `weights` (N,) of a
        batch that has any."""
        hidden, head = policy.project(batch=batch, positions=batch.extras["positions"])
        inputs = {"hidden": hidden, "head": head, "targets": batch.extras["targets"]}
        if "weights" in batch.extras:  # the keyword is passed only where it matters: not every loss accepts it
            inputs["weights"] = batch.extras["weights"]
        return loss(**inputs)

    def preview(self, *, example: Mapping[str, np.ndarray]) -> Sequence[tuple[str, bool]]:
        """The example as (text, trained) segments in order. A document's first token counts as not trained. Of further
        turns that stand as texts of their own, each shows what follows its common beginning with the first text."""
        ids, spans, decoder = example["input_ids"], example["spans"].reshape(-1, 2), self._context.tokenizer
        begins, shared = branches(example)
        edges = [0, *begins.tolist(), len(ids)]
        segments: list[tuple[str, bool]] = []
        for at, (begin, end) in enumerate(pairwise(edges)):
            own = spans[(spans[:, 0] >= begin) & (spans[:, 0] < end)]
            before = ids[: shared[at - 1]] if at else ids[:0]
            if at:
                segments.append((f"\n(an earlier turn of it, after the first {len(before)} tokens:)\n", False))
            whole = [*before.tolist(), *ids[begin:end].tolist()]
            first = max(len(before), 0 if at else 1)
            moved = np.maximum(own - begin + len(before), first)
            segments += marked(decoder, whole, moved, start=len(before))
        return segments


def _documents(
    examples: Sequence[Mapping[str, np.ndarray]], starts: np.ndarray, targets_at: np.ndarray
) -> tuple[list[np.ndarray], list[int], np.ndarray]:
    """(documents, the prefix that each shares, the place before each of `targets_at`) of examples that begin at
    `starts`. Before a branch's first token comes the last one that it shares with its trunk."""
    if not any(len(example["prefixes"]) for example in examples):
        return [example["input_ids"] for example in examples], [], targets_at - 1
    documents: list[np.ndarray] = []
    prefixes: list[int] = []
    before = np.arange(-1, starts[-1] + len(examples[-1]["input_ids"]) - 1)
    for example, start in zip(examples, starts, strict=True):
        begins, shared = branches(example)
        documents += np.split(example["input_ids"], begins)
        prefixes += [0, *shared.tolist()]
        before[start + begins] = start + shared - 1
    return documents, prefixes, before[targets_at]


def causal_example(
    input_ids: Sequence[int] | np.ndarray,
    spans: Spans,
    *,
    weights: Weights | None = None,
    truncated: bool = False,
    warnings: tuple[str, ...] = (),
) -> TokenExample:
    """The example of one document. `spans`: trained tokens as ascending, disjoint [start, end). `weights`: a factor on
    the loss of each span's tokens; None: all 1. A span with the weight 0 is not trained.

    Its count is that of the shifted labels, each times its weight: a span that begins at 0 loses the document's first
    token.
    """
    spans, factors = _trained(spans, weights)
    flat = np.asarray(spans, dtype=np.int32).reshape(-1)
    tokens = [max(end - max(start, 1), 0) for start, end in spans]
    # In float64, as the loss adds them up: a float32 sum would differ from batch to batch.
    count = sum(tokens) if factors is None else as_count(float(factors.astype(np.float64) @ np.asarray(tokens)))
    ids = np.asarray(input_ids, dtype=np.int32)
    column = np.zeros(0, dtype=np.int32) if factors is None else to_column(factors)
    columns: dict[str, Any] = {"input_ids": ids, "spans": flat, "weights": column, "prefixes": _NONE}
    return TokenExample(columns=columns, length=len(ids), count=count, truncated=truncated, warnings=warnings)


def fit_spans(
    input_ids: np.ndarray,
    spans: Spans,
    *,
    max_length: int,
    weights: Weights | None = None,
    warnings: tuple[str, ...] = (),
) -> TokenExample | Dropped:
    """The example cut to `max_length` tokens: after the last span that fits whole, else inside the first span.

    `weights`: see `causal_example`; spans with the weight 0 play no part. Dropped where they leave no span (BC066), or
    where not even the first span's first target fits (BC028): the prompt alone is too long.
    """
    spans, factors = _trained(spans, weights)
    if not spans and factors is not None:
        return Dropped(code="BC066", reason="no supervised token")
    if len(input_ids) <= max_length:
        return causal_example(input_ids, spans, weights=factors, warnings=warnings)
    whole = [(start, end) for start, end in spans if end <= max_length]
    if any(end > max(start, 1) for start, end in whole):
        kept = None if factors is None else factors[: len(whole)]
        return causal_example(input_ids[: whole[-1][1]], whole, weights=kept, truncated=True, warnings=warnings)
    first = next((at for at, (start, end) in enumerate(spans) if end > max(start, 1)), None)
    if first is None or max(spans[first][0], 1) >= max_length:
        return Dropped(code="BC028", reason="the prompt does not fit data.max_length")
    kept, cut = None if factors is None else factors[first : first + 1], [(spans[first][0], max_length)]
    return causal_example(input_ids[:max_length], cut, weights=kept, truncated=True, warnings=warnings)


def _trained(spans: Spans, weights: Weights | None) -> tuple[Spans, np.ndarray | None]:
    """The spans whose weight is not 0, and their float32 weights."""
    if weights is None:
        return spans, None
    factors = checked_weights(weights, len(spans))
    return [span for span, factor in zip(spans, factors, strict=True) if factor], factors[factors > 0]
