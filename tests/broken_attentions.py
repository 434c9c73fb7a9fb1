"""Attention plugins that are exact but for one fault, each on top of `varlen`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bumblecore_core import AttentionFunctions, AttentionRecord
from bumblecore_plugins.attention.varlen import varlen_attention, varlen_mask

SLIGHTLY = 0.05
"""The share of a token's output that comes from a token which it must not see."""


def peek(output: torch.Tensor, value: torch.Tensor, lengths: list[int], where: Callable[[int], bool]) -> torch.Tensor:
    """(1, T, A, D) `output`, to which each token at a position that fulfils `where` adds the value after it."""
    start, added = 0, torch.zeros_like(output)
    for length in lengths:
        for position in filter(where, range(length - 1)):
            added[0, start + position] = SLIGHTLY * value[0, :1, start + position + 1]
        start += length
    return output + added


def peeking(where: Callable[[int], bool], module, query, key, value, mask, **kwargs) -> tuple[torch.Tensor, None]:
    output, _ = varlen_attention(module, query, key, value, mask, **kwargs)
    lengths = list(kwargs.get("document_lengths") or [query.shape[2]])
    return peek(output, value, lengths, where), None


def leaking(distance: int, module, query, key, value, mask, **kwargs) -> tuple[torch.Tensor, None]:
    """Each document sees the first token of the document `distance` places before it."""
    output, _ = varlen_attention(module, query, key, value, mask, **kwargs)
    lengths = list(kwargs.get("document_lengths") or [query.shape[2]])
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    output = output.clone()
    for place in range(distance, len(lengths)):
        own = slice(starts[place], starts[place] + lengths[place])
        output[0, own] += SLIGHTLY * value[0, :1, starts[place - distance]]
    return output, None


def sharing_too_much(module, query, key, value, mask, **kwargs) -> tuple[torch.Tensor, None]:
    """A shared prefix is one token longer than the batch says, for prefixes of more than ten tokens."""
    shared = kwargs.pop("shared_prefixes", ())
    longer = tuple(prefix + (prefix > 10) for prefix in shared)
    return varlen_attention(module, query, key, value, mask, shared_prefixes=longer, **kwargs)


def record(name: str, forward: Callable[..., Any], *, priority: int = 50) -> AttentionRecord:
    """The record of an attention that runs everywhere."""
    return AttentionRecord(
        name=name,
        summary="For a test.",
        load=lambda: AttentionFunctions(forward=forward, mask=varlen_mask),
        unsupported=lambda *, device, dtype: None,
        priority=priority,
    )


PEEKS = {
    "always": lambda position: True,
    "beyond_16_tokens": lambda position: position >= 16,
    "at_the_ends_of_chunks": lambda position: position % 8 == 7,
    "only_inside_chunks": lambda position: position % 8 != 7,
    "only_at_the_start": lambda position: position < 3,
}
BROKEN = {
    **{f"peeks_{name}": record(f"peeks_{name}", partial(peeking, where)) for name, where in PEEKS.items()},
    "leaks_from_the_neighbour": record("leaks_from_the_neighbour", partial(leaking, 1)),
    "leaks_from_the_second_neighbour": record("leaks_from_the_second_neighbour", partial(leaking, 2)),
    "leaks_from_the_fourth_neighbour": record("leaks_from_the_fourth_neighbour", partial(leaking, 4)),
    "shares_too_much": record("shares_too_much", sharing_too_much),
}
