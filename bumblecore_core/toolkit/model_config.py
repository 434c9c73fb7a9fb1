"""A model's config.json, looked at before transformers builds what it describes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bumblecore_core.errors import ModelError, one
from bumblecore_core.toolkit.json_files import read_json_object

MOST = 10_000
COUNTS = re.compile(r"(?!max_).*(layers?|blocks?|experts?)")
"""Keys whose value is a number of modules, each of which takes time and memory even without weights."""


def read_model_config(directory: Path, field: str) -> dict[str, Any]:
    """The object in `directory`/config.json. Raises `ModelError` BC064 where it is none, or where it asks for so many
    layers or experts that building them would not end."""
    file = directory / "config.json"
    config = read_json_object(file, field)
    for name, count in _counts(config):
        if count > MOST:
            shown = count if count < 10**18 else "a number of more than 18 digits"
            problem, fix = f"{name} is {shown}, and {MOST} is the most", "Correct the file, or copy it again"
            raise one(ModelError, "BC064", problem, fix, place=str(file), field=field)
    return config


def refuse_encoder(config: Any, directory: Path, field: str) -> None:
    """Raises `ModelError` BC064 for a transformers config of an encoder, or of an encoder with a decoder: such a model
    sees the tokens that it would be trained to predict, or wants a second text as its input.

    Types that exist as encoder and as decoder (BERT and its kind: those with a masked language model) are told apart by
    the config's `is_decoder`. Encoders without that key show in the check of causality before training.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        problem = f"model type {kind} is an encoder with a decoder (is_encoder_decoder): it wants two texts"
        fix = "Use a decoder model such as llama or qwen3"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False:
        problem = f"model type {kind} is an encoder (is_decoder is false): each token sees the later ones"
        fix = "Use a decoder model such as llama or qwen3; set is_decoder to true if the weights are those of a decoder"
    else:
        return
    raise one(ModelError, "BC064", problem, fix, place=str(directory / "config.json"), field=field)


def _counts(config: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int]]:
    """(key, value) of the numbers of modules, those of inner configs (`text_config`) too."""
    for name, value in config.items():
        if isinstance(value, int) and COUNTS.fullmatch(name):
            yield name, value
        elif isinstance(value, dict) and depth < 3:
            yield from _counts(value, depth + 1)
