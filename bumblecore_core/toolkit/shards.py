"""Parameters of which a rank may hold a part alone."""

from __future__ import annotations

import torch


def gathers_weights(hook: object) -> bool:
    """Whether a module's hook is one by which ZeRO-3 brings the module's weights together: it changes no number."""
    return str(getattr(hook, "__module__", "")).startswith("deepspeed.")


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter: ZeRO-3 leaves an empty one on each rank, and its shape beside it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
