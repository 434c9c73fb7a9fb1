"""Parameters of which a rank may hold a part alone."""

from __future__ import annotations

import torch


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter: ZeRO-3 leaves an empty one on each rank, and its shape beside it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
