"""The dtypes of a model that computes in half precision: buffers, and parameters that stay in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def prepare_cast(
    model: Any,
    *,
    loaded_in: torch.dtype | None,
    compute_dtype: torch.dtype,
    without_weights: Callable[[torch.dtype], Any],
) -> None:
    """Makes of `model`, of weights in `loaded_in`, what `from_pretrained(dtype=compute_dtype)` gives once an engine has
    cast its weights: buffers get the dtypes that they have there, computed ones with float32 values rounded once; and
    parameters that the class makes in float32 whatever the dtype are listed in `_keep_in_fp32_modules_strict`.
    `without_weights` makes the same model without memory for its parameters, in a dtype.
    """
    like = model if loaded_in == compute_dtype else without_weights(compute_dtype)
    if compute_dtype != torch.float32:
        kept = {name for name, parameter in like.named_parameters() if parameter.dtype == torch.float32}
        model._keep_in_fp32_modules_strict = kept.union(model._keep_in_fp32_modules_strict or ())
    if like is model:
        return
    # A buffer that was computed in half precision is not rounded a second time but computed again.
    if torch.float32 in (loaded_in, compute_dtype):
        exact = model if loaded_in == torch.float32 else like
    else:
        exact = without_weights(torch.float32)
    computed, wanted = dict(exact.named_modules()), dict(like.named_modules())
    for name, module in model.named_modules():
        for key, buffer in wanted[name]._buffers.items():
            if buffer is not None and module._buffers[key] is not None:
                from_class = key in module._non_persistent_buffers_set
                value = computed[name]._buffers[key] if from_class else module._buffers[key]
                module._buffers[key] = value.to(buffer.dtype)
