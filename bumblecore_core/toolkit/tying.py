"""`tie_word_embeddings` in a config.json, corrected where the weight files contradict it.

Otherwise the next program that loads the model would replace a head that the files hold by the embedding, and start one
that they do not hold from random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from bumblecore_core.toolkit.weight_files import StoredTensor, has_weights, stored_tensors

FLAG = "tie_word_embeddings"
ROWS = 4096  # of an embedding, compared at a time


def correct_tying(config: Any, directory: Path) -> str | None:
    """Has `config` state what the weight files in `directory` hold; a warning where it stated something else.

    The flag is cleared where the files hold a head that differs from the embedding, and set where they hold an
    embedding, no head, and no other tensor that could be one. Pickled files are not looked at. Raises `ModelError` as
    `check_weight_files` does.
    """
    stated, names = getattr(config, FLAG, None), _tied_names(config)
    if stated is None or names is None or not has_weights(directory):
        return None
    places, file = stored_tensors(directory), directory / "config.json"
    heads, embeddings = ([name for name in places if _is(name, wanted)] for wanted in names)
    if len(embeddings) != 1 or len(heads) > 1:
        return None
    embedding = embeddings[0]
    if stated and heads and not _equal(places, heads[0], embedding):
        setattr(config, FLAG, False)
        return f"{file} states {FLAG}: true, but the files hold a head that differs from the embedding: not tied"
    alike = sum(tensor.shape == places[embedding].shape for tensor in places.values())
    if not stated and not heads and alike == 1:
        setattr(config, FLAG, True)
        return f"{file} states {FLAG}: false, but the files hold no {names[0]}: tied to the embedding"
    return None


def _tied_names(config: Any) -> tuple[str, str] | None:
    """(name of the head's weight, name of the embedding's) that the model class of `config` ties; None where it ties
    none, or names them by patterns."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    pairs = model_class._tied_weights_keys
    if not isinstance(pairs, dict):
        return None
    plain = [(head, embedding) for head, embedding in pairs.items() if head.endswith(".weight") and "^" not in head]
    return plain[0] if len(plain) == 1 else None


def _is(stored: str, name: str) -> bool:
    """Whether a stored tensor is the weight `name`, with or without the prefixes that some models are saved with."""
    return stored == name or stored.endswith(f".{name}") or name.endswith(f".{stored}")


def _equal(places: Mapping[str, StoredTensor], one: str, other: str) -> bool:
    if places[one].shape != places[other].shape:
        return False
    keys = [(str(places[name].file), places[name].file.stat().st_mtime_ns, name) for name in (one, other)]
    return _equal_values(keys[0], keys[1])


@lru_cache(maxsize=8)
def _equal_values(one: tuple[str, int, str], other: tuple[str, int, str]) -> bool:
    """Whether two stored matrices (file, its time of change, name) are equal; ends at the first rows that differ."""
    import torch
    from safetensors import safe_open

    with safe_open(one[0], framework="pt") as first, safe_open(other[0], framework="pt") as second:
        left, right = first.get_slice(one[2]), second.get_slice(other[2])
        rows = left.get_shape()[0]
        return all(
            torch.equal(left[start : start + ROWS], right[start : start + ROWS]) for start in range(0, rows, ROWS)
        )
