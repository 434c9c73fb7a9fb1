"""Tiny models with LoRA in them, for tests without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bumblecore_plugins.adapters import LoraOptions
from bumblecore_plugins.adapters.lora import Lora
from tiny_models import make_model


def options(**given: Any) -> LoraOptions:
    """Of rank 4 where nothing else is said."""
    return LoraOptions(**{"rank": 4, **given})


def wrapped(base: Path, family: str = "qwen3", **given: Any) -> tuple[Lora, Any]:
    """(adapter, model) as training begins."""
    adapter = Lora(options(**given))
    torch.manual_seed(1)
    model = adapter.wrap(model=make_model(family), base=base, checkpoint=None)
    return adapter, model


def moved(model: Any) -> Any:
    """Trains the model for a step, in effect."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def save(adapter: Lora, model: Any, directory: Path) -> Path:
    """As a run saves, into a new directory."""
    directory.mkdir()
    state = {name: tensor for name, tensor in model.state_dict().items() if adapter.saves(name=name)}
    adapter.save(model=model, state=state, directory=directory)
    return directory


def tiny_base(directory: Path) -> Path:
    """A directory with the weights of `make_model("qwen3")`."""
    make_model("qwen3").save_pretrained(directory)
    return directory
