"""Binning of documents: which documents share a packed row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

# Best-fit needs all lengths of a group at once; groups of this many documents keep the packing local in the shuffled
# order (an epoch's order stays random) and already fill bins to more than 99 % on usual length distributions.
GROUP = 16_384


def pack_bins(order: np.ndarray, lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Bins documents by best-fit decreasing (Johnson 1974) within groups of the given order.

    `order`: (n,) indices of documents; `lengths`: tokens of each document that `order` may name; `capacity`: tokens of
    a bin. A document longer than `capacity` gets a bin of its own. Returns `(rows, offsets)`: bin b holds the documents
    `rows[offsets[b]:offsets[b + 1]]`; each document of `order` is in exactly one bin.
    """
    rows: list[int] = []
    offsets = [0]
    for start in range(0, len(order), GROUP):
        for members in _best_fit(order[start : start + GROUP], lengths, capacity):
            rows.extend(members)
            offsets.append(len(rows))
    return np.asarray(rows, dtype=np.int64), np.asarray(offsets, dtype=np.int64)


def _best_fit(group: np.ndarray, lengths: np.ndarray, capacity: int) -> Sequence[list[int]]:
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    longest_first = group[np.argsort(-lengths[group].astype(np.int64), kind="stable")]
    for document in longest_first.tolist():
        length = int(lengths[document])
        at = bisect_left(free, (length, -1))
        if at < len(free):
            left, chosen = free.pop(at)
        else:
            left, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(document)
        if left > length:
            insort(free, (left - length, chosen))
    return bins
