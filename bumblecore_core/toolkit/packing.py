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
    count: int | float,
    extras: Mapping[str, np.ndarray] | None = None,
    shared_prefixes: Sequence[int] = (),
) -> Batch:
    """The micro-batch of D documents, each a (n,) integer array with n ≥ 1, T tokens together, on the CPU.

    `input_ids` (1, T) int64; `position_ids` (1, T) int64, restarting with each document at 0, or behind its shared
    prefix (see `Batch`); `cu_seqlens` (D + 1,) int32; `extras` become tensors of their own dtype. `rows` and `count`
    are taken over as they are.
    """
    lengths = np.fromiter((len(document) for document in documents), dtype=np.int64, count=len(documents))
    starts = offsets(lengths)
    origins = starts[:-1] - np.asarray(shared_prefixes or [0] * len(documents), dtype=np.int64)
    position_ids = np.arange(starts[-1], dtype=np.int64) - np.repeat(origins, lengths)
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(documents).astype(np.int64))[None],
        position_ids=torch.from_numpy(position_ids)[None],
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        document_lengths=tuple(lengths.tolist()),
        rows=tuple(int(row) for row in rows),
        count=count,
        extras={name: torch.from_numpy(values) for name, values in (extras or {}).items()},
        shared_prefixes=tuple(shared_prefixes) if any(shared_prefixes) else (),
    )


def unshared(batch: Batch) -> tuple[Batch, torch.Tensor]:
    """The same documents with every shared prefix repeated before the document that shares it; and (T,) int64: where
    each token of `batch` is in it. Its `rows`, `count` and extras are left out."""
    sources: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    lengths: list[int] = []
    start = placed = trunk = 0
    for length, shared in zip(batch.document_lengths, batch.shared_prefixes, strict=True):
        trunk = trunk if shared else start
        sources += [torch.arange(trunk, trunk + shared), torch.arange(start, start + length)]
        places.append(torch.arange(placed + shared, placed + shared + length))
        lengths.append(shared + length)
        start, placed = start + length, placed + shared + length
    device = batch.input_ids.device
    source = torch.cat(sources).to(device)
    expanded = Batch(
        input_ids=batch.input_ids[:, source],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(device),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device),
        document_lengths=tuple(lengths),
        rows=(),
        count=0,
    )
    return expanded, torch.cat(places).to(device)


def offsets(lengths: np.ndarray) -> np.ndarray:
    """(D + 1,) int64: where each of D documents with these lengths starts, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The integers of all half-open ranges [starts[i], ends[i]) one after another, as int64; empty ranges give none."""
    sizes = np.maximum(ends - starts, 0).astype(np.int64)
    before = offsets(sizes)
    integers: np.ndarray = np.arange(before[-1], dtype=np.int64) + np.repeat(starts - before[:-1], sizes)
    return integers
