"""What fused heads share: chunks of tokens, buffers that live on, and the weight's gradient as a sum over chunks.

A fused head takes supervised tokens in chunks, each with the whole vocabulary, so that softmax is over complete rows
and nothing is approximated. A chunk's logits lie in one buffer of the weights' dtype; blocks of its rows pass through a
small float32 buffer, from where the gradient with respect to the logits is written back over them, rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Bytes of a chunk's logits: enough tokens for matrix products at full speed, small beside the model's activations."""
PRODUCT_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Bytes of the rounded product that is added to a float32 gradient of the weight, a block of the vocabulary at a time
(on a CPU the block is still in its cache when it is added)."""
CPU_BLOCK_BYTES = 8 * 2**20
"""Bytes of the float32 rows that are worked on at once on a CPU, so that they stay in its cache."""


@dataclass(kw_only=True)
class Workspace:
    """Buffers that live on between calls: on a CPU, fresh pages cost more than a pass over them."""

    chunk_tokens: int | None = None
    kept: dict[tuple[str, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def buffer(self, use: str, rows: int, columns: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised (rows, columns) tensor; CUDA's allocator keeps its own."""
        if like.device.type != "cpu":
            return torch.empty(rows, columns, dtype=dtype, device=like.device)
        flat = self.kept.get((use, dtype))
        if flat is None or flat.numel() < rows * columns:
            flat = self.kept[use, dtype] = torch.empty(rows * columns, dtype=dtype)
        return flat[: rows * columns].view(rows, columns)

    def tokens_per_chunk(self, tokens: int, vocabulary: int, like: torch.Tensor) -> int:
        """Chunks of equal size (a short last one would waste a pass over the weight), within the budget."""
        budget = _bytes_for(like, CHUNK_BYTES) // (vocabulary * like.element_size())
        most = self.chunk_tokens or max(16, budget)
        chunks = -(-tokens // most)
        return most if self.chunk_tokens else -(-tokens // max(1, chunks))


def added_product(
    total: torch.Tensor | None,
    logit_gradients: torch.Tensor,
    rows: torch.Tensor,
    wide: torch.dtype,
    rounded: bool,
    workspace: Workspace,
) -> torch.Tensor:
    """`total` + logit_gradientsᵀ @ rows: the product itself where the gradient is to be `rounded` to the weights' dtype
    and there is one chunk; otherwise a float32 sum of the chunks' products."""
    if rounded or (rows.dtype == wide and total is None):
        return torch.mm(logit_gradients.t(), rows)
    if rows.dtype == wide and total is not None:
        return total.addmm_(logit_gradients.t(), rows)
    vocabulary, width = logit_gradients.shape[1], rows.shape[1]
    first = total is None
    if total is None:
        total = torch.empty(vocabulary, width, dtype=wide, device=rows.device)
    per_block = min(vocabulary, max(1, _bytes_for(rows, PRODUCT_BYTES) // (width * rows.element_size())))
    for start in range(0, vocabulary, per_block):
        block = total[start : start + per_block]
        product = workspace.buffer("product", block.shape[0], width, rows, rows.dtype)
        torch.mm(logit_gradients[:, start : start + per_block].t(), rows, out=product)
        block.copy_(product) if first else block.add_(product)
    return total


def _bytes_for(tensor: torch.Tensor, budgets: Mapping[str, int]) -> int:
    return budgets.get(tensor.device.type, budgets["cuda"])


def accumulates_wide(weight: torch.Tensor) -> bool:
    """Whether autograd keeps this parameter's gradient in a wider dtype than its own (`grad_dtype`)."""
    kept = weight.grad_dtype if weight.is_leaf else None
    return kept is not None and kept != weight.dtype


def row_blocks(logits: torch.Tensor, wide: torch.dtype) -> Iterator[slice]:
    """Slices of the rows of `logits` (n, V) that are worked on at once in `wide`."""
    count, vocabulary = logits.shape
    per_block = count
    if logits.device.type == "cpu":
        per_block = min(count, max(torch.get_num_threads(), CPU_BLOCK_BYTES // (vocabulary * wide.itemsize)))
    for start in range(0, count, per_block):
        yield slice(start, min(start + per_block, count))


def logit_chunks(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, workspace: Workspace
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of a chunk of `hidden` (N, H), and their products (n, V) with the head's `weight` (V, H) and `bias` (V,), in
    a buffer that the next chunk overwrites."""
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    step = max(1, workspace.tokens_per_chunk(tokens, vocabulary, weight))
    for start in range(0, tokens, step):
        kept = slice(start, min(start + step, tokens))
        rows = hidden[kept]
        logits = workspace.buffer("logits", rows.shape[0], vocabulary, rows, weight.dtype)
        if bias is None:
            torch.mm(rows, weight.t(), out=logits)
        else:
            torch.addmm(bias, rows, weight.t(), out=logits)
        yield kept, logits


def final_logits(
    values: torch.Tensor, *, scale: float, soft_cap: float | None, with_slope: bool
) -> torch.Tensor | None:
    """Turns products of the head into logits, in place: scaled and soft-capped (see `Head`). Returns, where there is a
    cap and `with_slope`, the cap's derivative."""
    if scale != 1.0:
        values.mul_(scale)
    if soft_cap is None:
        return None
    squashed = values.div_(soft_cap).tanh_()
    slope = 1 - squashed**2 if with_slope else None
    values.mul_(soft_cap)
    return slope
