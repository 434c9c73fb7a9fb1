"""Parameters of which a rank may hold a part alone."""

from __future__ import annotations

import torch
import torch.distributed as dist


def gathers_weights(hook: object) -> bool:
    """Whether a module's hook is one by which ZeRO-3 brings the module's weights together: it changes no number."""
    return str(getattr(hook, "__module__", "")).startswith("deepspeed.")


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter: ZeRO-3 leaves an empty one on each rank, and its shape beside it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether ranks hold parts of this model's parameters, so that each forward pass is a collective (ZeRO-3)."""
    return any(hasattr(parameter, "ds_shape") for parameter in model.parameters())


def largest_over_ranks(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers. A collective, which waits for `device`; alone the number itself."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return number
    numbers = torch.tensor([number], device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return int(numbers.item())
