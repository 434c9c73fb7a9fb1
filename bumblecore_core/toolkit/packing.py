"""Documents concatenated into one padding-free sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bumblecore_core.values import Batch


def pack(
    documents: Sequence[np.ndarray],
    *,
    rows: Sequence[int],
    count: int,
    extras: Mapping[str, np.ndarray] | None = None,
) -> Batch:
    """The micro-batch of D documents, each a (n,) integer array with n ≥ 1, T tokens together, on the CPU.

    `input_ids` (1, T) int64; `position_ids` (1, T) int64, restarting at 0 with each document; `cu_seqlens` (D + 1,)
    int32; `extras` become tensors of their own dtype. `rows` and `count` are taken over as they are.
    """
    lengths = np.fromiter((len(document) for document in documents), dtype=np.int64, count=len(documents))
    starts = offsets(lengths)
    position_ids = np.arange(starts[-1], dtype=np.int64) - np.repeat(starts[:-1], lengths)
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(documents).astype(np.int64))[None],
        position_ids=torch.from_numpy(position_ids)[None],
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        document_lengths=tuple(lengths.tolist()),
        rows=tuple(int(row) for row in rows),
        count=count,
        extras={name: torch.from_numpy(values) for name, values in (extras or {}).items()},
    )


def offsets(lengths: np.ndarray) -> np.ndarray:
    """(D + 1,) int64: where each of D documents with these lengths starts, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The integers of all half-open ranges [starts[i], ends[i]) one after another, as int64; empty ranges give none."""
    sizes = np.maximum(ends - starts, 0).astype(np.int64)
    before = offsets(sizes)
    integers: np.ndarray = np.arange(before[-1], dtype=np.int64) + np.repeat(starts - before[:-1], sizes)
    return integers
