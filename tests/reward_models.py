"""Tiny reward models, for tests without a run."""

from __future__ import annotations

import torch
import transformers

from tiny_models import FAMILIES, RECURRENT, SPECIAL_TOKENS


def make_scorer(family: str, *, attention: str = "sdpa", **changes) -> torch.nn.Module:
    """A reward model with weights large enough for every part to matter, in evaluation mode."""
    prefix, options = {**FAMILIES, **RECURRENT}[family]
    config = getattr(transformers, f"{prefix}Config")(**{**SPECIAL_TOKENS, **options, "num_labels": 1, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model
