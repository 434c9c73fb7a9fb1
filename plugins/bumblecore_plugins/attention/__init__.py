"""Built-in attention implementations for padding-free batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bumblecore_core import AttentionFunctions, AttentionRecord, hookimpl

if TYPE_CHECKING:
    import torch

BUMBLECORE_HOOK_API = 1
FLASH_ATTENTION_CAPABILITY = (8, 0)


def load_varlen() -> AttentionFunctions:
    from bumblecore_plugins.attention import varlen

    return AttentionFunctions(forward=varlen.varlen_attention, mask=varlen.varlen_mask)


def anywhere(*, device: torch.device, dtype: torch.dtype) -> None:
    """These run on every device, in every dtype."""


def flash_attention_unsupported(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlashAttention-2 cannot run on `device` in `dtype`, or None where it can."""
    import importlib.util

    import torch

    if device.type != "cuda":
        return f"it needs a CUDA device, and this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bf16 or fp16, and this run computes in {str(dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(device)
    if capability < FLASH_ATTENTION_CAPABILITY:
        return f"it needs compute capability 8.0, and the device has {capability[0]}.{capability[1]}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash_attn is not installed (pip install 'bumblecore[flash-attn]')"
    return None


@hookimpl
def bumble_attentions() -> Sequence[AttentionRecord]:
    return [
        AttentionRecord(
            name="flash_attention_2",
            summary="FlashAttention-2 of the package flash_attn, with the documents' boundaries.",
            load=AttentionFunctions,
            unsupported=flash_attention_unsupported,
            priority=20,
        ),
        AttentionRecord(
            name="varlen",
            summary="Each document by itself: torch's variable-length attention on CUDA, SDPA per document elsewhere.",
            load=load_varlen,
            unsupported=anywhere,
            priority=10,
        ),
        AttentionRecord(
            name="sdpa",
            summary="transformers' SDPA with a dense block-diagonal mask: a slow reference.",
            load=AttentionFunctions,
            unsupported=anywhere,
            priority=-10,
        ),
        AttentionRecord(
            name="eager",
            summary="transformers' plain attention with a dense block-diagonal mask: a slow reference.",
            load=AttentionFunctions,
            unsupported=anywhere,
            priority=-20,
        ),
    ]
