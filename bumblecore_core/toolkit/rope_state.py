"""Rotary embeddings whose frequencies depend on the longest document that the model has computed so far.

With dynamic scaling, transformers keeps the frequencies of the longest document for all shorter ones after it. A
document then gets other hidden states than in a model that has just been loaded.
"""

from __future__ import annotations

from typing import Any

import torch

ORIGINAL = "original_inv_freq"
LONGEST = "max_seq_len_cached"


def find_dynamic_ropes(model: torch.nn.Module) -> tuple[Any, ...]:
    """The rotary modules of a transformers model that keep the frequencies of the longest document."""
    return tuple(module for module in model.modules() if hasattr(module, LONGEST) and _is_dynamic(module))


def reset_rope(rope: Any) -> None:
    """Gives a module of `find_dynamic_ropes` the state that it was loaded with."""
    for name, frequencies in list(rope.named_buffers(recurse=False)):
        if name.endswith(ORIGINAL):
            prefix = name.removesuffix(ORIGINAL)
            setattr(rope, f"{prefix}inv_freq", frequencies)
            setattr(rope, f"{prefix}{LONGEST}", rope.original_max_seq_len)


def _is_dynamic(rope: Any) -> bool:
    """`rope_type` is a name, or a name for each type of layer."""
    kinds = getattr(rope, "rope_type", None)
    return any("dynamic" in str(kind) for kind in (kinds.values() if isinstance(kinds, dict) else (kinds,)))
