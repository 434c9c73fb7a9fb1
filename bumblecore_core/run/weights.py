"""In which dtype a model's weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bumblecore_core.toolkit.adapters import adapter_chain
from bumblecore_core.toolkit.weight_files import check_weight_files

if TYPE_CHECKING:
    import torch


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype in which loading loses nothing: the files' own where they agree on bf16 or fp16, float32 otherwise.

    The engine makes float32 masters from what was loaded. Loading a float32 checkpoint in the compute dtype would round
    them; loading a bf16 one in float32 would only take twice the memory. The config's own `dtype` is a claim that files
    need not keep, so it is not asked. An adapter is folded into its base in float32, which rounds nothing away.

    Raises `ModelError`: BC029 for a missing file, BC064 for a torn or corrupt one.
    """
    import torch

    directory, adapters = adapter_chain(directory)
    found = frozenset(check_weight_files(directory))
    if adapters:
        return torch.float32
    return {frozenset({"BF16"}): torch.bfloat16, frozenset({"F16"}): torch.float16}.get(found, torch.float32)
