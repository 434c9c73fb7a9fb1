"""A model without memory behind its parameters, for ranks that get their shards of it from rank 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def without_memory(build: Callable[[], Any]) -> Any:
    """What `build` makes, with each parameter one number of its dtype seen through its shape. Buffers are real: they
    are computed, not loaded. Tied parameters stay tied."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = build()
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    values = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                    made[id(parameter)] = torch.nn.Parameter(values, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
    model.tie_weights()
    return model
