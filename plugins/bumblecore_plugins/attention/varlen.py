"""Attention over concatenated documents that never crosses a document and builds no (T, T) mask.

On CUDA in half precision, documents go through `torch.nn.attention.varlen.varlen_attn` in one call (that path needs a
GPU, so tests on a CPU do not reach it); elsewhere each document is one call of scaled dot product attention.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from bumblecore_core import ModelError, one

CPU_WIDENED_LENGTH = 512
"""Below this mean document length, half-precision attention on a CPU computes in float32: torch's half-precision
backward pass takes 1.5 to 5 times as long there on documents of 200 to 40 tokens; from about 1000 they are on a par."""


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    document_lengths: tuple[int, ...] | None = None,
    shared_prefixes: tuple[int, ...] = (),
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature. `query`: (B, A, T, D), `key`, `value`: (B, K, S, D) with A a multiple of K.

    `document_lengths` (with B = 1) sums to T; without it each of the B rows is a document, and S may exceed T (cache).
    `shared_prefixes`: how many tokens of its trunk each document attends to as well (see `Batch`).
    `sliding_window` counts the positions that a token sees, itself included, inside its document; `softcap` c turns
    scores s into c·tanh(s / c) (Gemma 2); `s_aux` (A,) are attention sinks (gpt-oss). Returns (B, T, A, D) and None.
    Raises ModelError (BC065) for a mask or a position bias, which this implementation would have to ignore.
    """
    if attention_mask is not None or kwargs.get("position_bias") is not None:
        raise _refused("the model hands a mask or a position bias to the attention")
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    options = _Options(causal, dropout, scaling, sliding_window, softcap, s_aux)
    if document_lengths is None:
        return _attend(query, key, value, options).transpose(1, 2).contiguous(), None
    if query.shape[0] != 1 or query.shape[2] != key.shape[2] or query.shape[2] != sum(document_lengths):
        raise _refused(f"the documents hold {sum(document_lengths)} tokens, but the model attends over {key.shape[2]}")
    fits = not shared_prefixes and _fits_varlen_attn(query, value, options)
    if fits and len(document_lengths) == 1 and cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(0, query.shape[2] + 1, query.shape[2], dtype=torch.int32, device=query.device)
    if fits and cu_seq_lens_q is not None:
        return _varlen_attn(query, key, value, cu_seq_lens_q, max(document_lengths), options), None
    dtype, lengths = query.dtype, list(document_lengths)
    if query.device.type == "cpu" and dtype != torch.float64 and sum(lengths) < CPU_WIDENED_LENGTH * len(lengths):
        query, key, value = query.float(), key.float(), value.float()
    # split, and not one slice per document: its backward pass is a single concatenation.
    queries, keys, values = (list(torch.split(part, lengths, dim=2)) for part in (query, key, value))
    if shared_prefixes:
        keys, values = (_with_prefixes(parts, shared_prefixes) for parts in (keys, values))
    documents = zip(queries, keys, values, strict=True)
    attended = torch.cat([_attend(q, k, v, options).transpose(1, 2) for q, k, v in documents], dim=1)
    return attended.to(dtype), None


def _with_prefixes(parts: list[torch.Tensor], shared: tuple[int, ...]) -> list[torch.Tensor]:
    """Each document's keys or values (1, K, n, D), behind those of its prefix in its trunk (see `Batch`)."""
    whole: list[torch.Tensor] = []
    trunk = parts[0]
    for part, prefix in zip(parts, shared, strict=True):
        trunk = trunk if prefix else part
        whole.append(torch.cat([trunk[:, :, :prefix], part], dim=2) if prefix else part)
    return whole


def varlen_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    config: Any = None,
    **kwargs: Any,
) -> None:
    """transformers' mask signature: always None, since documents are told apart by their lengths.

    Raises ModelError (BC065) where None would change the result: padding (zeros in a 2-D `attention_mask`), a mask
    function of the model's own, or chunked attention over more than one chunk.
    """
    if attention_mask is not None and not bool(attention_mask[:, -kv_length:].all()):
        raise _refused("the batch is padded: the attention mask holds zeros")
    if use_vmap:
        raise _refused("the model changes the causal mask by a function of its own")
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None and kv_length > chunk:
        raise _refused("the micro-batch is longer than the chunks in which the model attends")


class _Options:
    """What all documents of a call share."""

    __slots__ = ("causal", "dropout", "scaling", "sinks", "softcap", "window")

    def __init__(
        self,
        causal: bool,
        dropout: float,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> None:
        self.causal, self.dropout, self.scaling = causal, dropout, scaling
        self.window, self.softcap, self.sinks = window, softcap, sinks


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: _Options) -> torch.Tensor:
    """B documents of one length: (B, A, T, D), (B, K, S, D) to (B, A, T, D). Query i stands at position S − T + i."""
    if options.softcap is not None or options.sinks is not None:
        return _attend_by_scores(query, key, value, options)
    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    mask = _mask(length, key.shape[2], options, query.device)
    is_causal = options.causal and mask is None and length > 1
    if groups > 1 and query.device.type == "cpu":
        # The heads of a group become a head axis over which key and value are broadcast: no copies of them.
        query = query.reshape(batch * key.shape[1], groups, length, query.shape[3])
        key, value = (part.reshape(-1, 1, *part.shape[2:]).expand(-1, groups, -1, -1) for part in (key, value))
    attended = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=options.dropout,
        is_causal=is_causal,
        scale=options.scaling,
        enable_gqa=groups > 1 and query.device.type != "cpu",
    )
    return attended.reshape(batch, heads, length, value.shape[3])


def _mask(length: int, seen: int, options: _Options, device: torch.device) -> torch.Tensor | None:
    """(T, S) booleans, or None where causality alone (or nothing) limits what a token sees."""
    window = seen if options.window is None else options.window
    if window >= seen and (not options.causal or length == seen or length == 1):
        return None
    distance = torch.arange(seen - length, seen, device=device)[:, None] - torch.arange(seen, device=device)
    kept = distance >= 0 if options.causal else torch.ones_like(distance, dtype=torch.bool)
    if window < seen:
        kept &= distance.abs() < window
    return kept


def _attend_by_scores(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: _Options) -> torch.Tensor:
    """As `_attend`, with soft-capped scores and attention sinks: (T, S) scores of one document at a time."""
    batch, heads, length, width = query.shape
    key_heads, seen = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, key_heads, heads // key_heads, length, width)
    scale = width**-0.5 if options.scaling is None else options.scaling
    scores = torch.matmul(grouped, key[:, :, None].transpose(-1, -2)) * scale
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    mask = _mask(length, seen, options, query.device)
    if mask is None and options.causal and length > 1:
        mask = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if options.sinks is not None:
        sinks = options.sinks.to(wide.dtype).view(1, key_heads, -1, 1, 1).expand(batch, -1, -1, length, -1)
        wide = torch.cat([wide, sinks], dim=-1)
    weights = torch.softmax(wide, dim=-1)[..., :seen].to(query.dtype)
    weights = functional.dropout(weights, options.dropout, training=options.dropout > 0)
    return torch.matmul(weights, value[:, :, None]).reshape(batch, heads, length, value.shape[3])


def _fits_varlen_attn(query: torch.Tensor, value: torch.Tensor, options: _Options) -> bool:
    """Whether torch's variable-length kernel computes this: it has no dropout, soft cap or sinks."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[3] == value.shape[3] <= 256
        and options.dropout == 0.0
        and options.softcap is None
        and options.sinks is None
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _has_varlen_attn()
    )


@lru_cache(maxsize=1)
def _has_varlen_attn() -> bool:
    """Whether this torch's `varlen_attn` takes windows and grouped heads (its first releases do not)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa", "scale"} <= inspect.signature(varlen_attn).parameters.keys()


def _varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    options: _Options,
) -> torch.Tensor:
    """All documents in one kernel, (1, ·, T, D) to (1, T, A, D); `starts`: (documents + 1,) int32."""
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if options.window is None else options.window - 1
    right = 0 if options.causal else left
    arguments: dict[str, Any] = {"scale": options.scaling, "window_size": (left, right)}
    if query.shape[1] != key.shape[1]:
        arguments["enable_gqa"] = True
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    attended: Any = varlen_attn(q, k, v, starts, starts, longest, longest, **arguments)
    return attended[None]  # type: ignore[no-any-return]


def _refused(problem: str) -> Exception:
    return one(
        ModelError,
        "BC065",
        f"attention 'varlen' cannot run: {problem}",
        "choose another model.attention for this model (sdpa is always there)",
    )
