"""Which layers of a model a small copy of it needs: one of every kind that its config describes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_PREFIX = 8
"""Layers that are copied as a prefix; where the kinds are farther apart, one layer of each kind is taken."""
FEWEST = 2
LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
)
PERIODS = re.compile(r".*(_period|_interval|_step|_pattern|_group_size|every_n_layers)")
INDEX_LISTS = re.compile(r"(?!.*token).*_(idxs|ids|indices)|mlp_only_layers|moe_layers|cross_attention_layers")
CYCLES = ("block_types",)
"""Lists that repeat until every layer has an entry."""
FROM_START = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
"""Numbers of layers at the start that are of another kind."""
FROM_END = ("num_kv_shared_layers",)
"""Numbers of layers at the end that are of another kind."""
LAST_INDICES = ("moe_layer_end_index",)


def chosen_layers(values: Mapping[str, Any], layers: int, *, of_each: int = 1) -> list[int]:
    """Indices of the layers to keep, of a config with these `values` and number of `layers`.

    They are the shortest prefix that has `of_each` layers of every kind, if that is at most `of_each` times
    LONGEST_PREFIX layers; else the first `of_each` layers of each kind. Options that repeat at a period keep at least
    `of_each` periods.
    """
    places: dict[tuple[Any, ...], list[int]] = {}
    for index in range(layers):
        places.setdefault(_kind(values, layers, index), []).append(index)
    kept = sorted(index for indices in places.values() for index in indices[:of_each])
    prefix = max([FEWEST, kept[-1] + 1, *(of_each * period for period in _periods(values))])
    if prefix <= LONGEST_PREFIX * of_each or len(kept) < FEWEST:
        return list(range(min(prefix, layers)))
    return kept


def layer_values(values: Mapping[str, Any], layers: int, kept: Sequence[int]) -> dict[str, Any]:
    """The values to change so that the config describes only the layers `kept`, in this order."""
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if name in LAYER_COUNTS and _is_count(value):
            changed[name] = len(kept) if value == layers else min(value, len(kept))
        elif _is_index_list(name, value):
            changed[name] = [place for place, index in enumerate(kept) if index in value]
        elif _is_per_layer(value, layers):
            changed[name] = [value[index] for index in kept]
        elif name in FROM_START and _is_count(value):
            changed[name] = sum(index < value for index in kept)
        elif name in FROM_END and _is_count(value):
            changed[name] = sum(index >= layers - value for index in kept)
        elif name in LAST_INDICES and _is_count(value):
            changed[name] = sum(index <= value for index in kept) - 1
        elif name == "attention_types" and isinstance(value, list):  # GPT Neo: [[kinds of a block, repetitions], ...]
            flat = [kind for kinds, times in value for kind in kinds * times]
            changed[name] = [[[flat[index] for index in kept], 1]]
    return changed


def _kind(values: Mapping[str, Any], layers: int, index: int) -> tuple[Any, ...]:
    """All that the config says of one layer."""
    kind: list[Any] = []
    for name, value in values.items():
        if _is_index_list(name, value):
            kind.append(index in value)
        elif _is_per_layer(value, layers):
            kind.append(repr(value[index]))
        elif name in FROM_START and _is_count(value):
            kind.append(index < value)
        elif name in FROM_END and _is_count(value):
            kind.append(index >= layers - value)
        elif name in LAST_INDICES and _is_count(value):
            kind.append(index <= value)
    return tuple(kind)


def _periods(values: Mapping[str, Any]) -> list[int]:
    """Layers of one period, for each option that repeats."""
    found = []
    for name, value in values.items():
        if PERIODS.fullmatch(name) and _is_count(value) and value > 1:
            offset = values.get(name.replace("_period", "_offset"), 0) if name.endswith("_period") else 0
            found.append(max(value, offset + 1))
        elif name in CYCLES and isinstance(value, list):
            found.append(len(value))
    return found


def _is_per_layer(value: Any, layers: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == layers > 1


def _is_index_list(name: str, value: Any) -> bool:
    return isinstance(value, list) and bool(INDEX_LISTS.fullmatch(name)) and all(_is_count(each) for each in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
