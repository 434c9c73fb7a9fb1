"""Small batches that a model is tried on before it trains, without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_core.values import Batch

PROBE_LENGTHS = (7, 5)


def probe_batch(
    model: Any, lengths: tuple[int, ...], *, shift: int = 0, skip: int = 0, shared: tuple[int, ...] = ()
) -> Batch:
    """Documents of fixed token ids (no random numbers are drawn); `shift` changes those of the first one."""
    embedding = model.get_input_embeddings().weight
    vocabulary, device = whole_shape(embedding)[0], embedding.device
    places = torch.arange(skip, skip + sum(lengths), device=device)
    ids = places * 7 + 3 + torch.where(places < PROBE_LENGTHS[0], shift, 0)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Batch(
        input_ids=(ids % vocabulary)[None],
        position_ids=torch.cat(
            [
                torch.arange(begin, begin + length, device=device)
                for begin, length in zip(shared or (0,) * len(lengths), lengths, strict=True)
            ]
        )[None],
        cu_seqlens=starts.to(torch.int32).to(device),
        document_lengths=lengths,
        rows=tuple(range(len(lengths))),
        count=0,
        shared_prefixes=shared,
    )


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; random state and every module's own mode are restored."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def close(left: torch.Tensor, right: torch.Tensor, *, ulps: float = 12.0) -> bool:
    """Equal up to `ulps` roundings of the coarser dtype, relative to the largest magnitude (12 in bf16 is 9 %)."""
    if left.shape != right.shape:
        return False
    coarser = max(torch.finfo(left.dtype).eps, torch.finfo(right.dtype).eps, 1e-6)
    left, right = left.float(), right.float()
    return bool((left - right).abs().max() <= ulps * coarser * right.abs().max())
