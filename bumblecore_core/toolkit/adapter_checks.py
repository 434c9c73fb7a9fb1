"""What an adapter's config may ask of PEFT: nothing that loads other code or needs more memory than the adapter has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bumblecore_core.errors import BumbleError, ModelError, one
from bumblecore_core.toolkit.library_errors import library_message

RANKS = ("r", "init_r", "target_r", "rank_pattern")
LOADING = ("megatron_config", "arrow_config")
"""Options with which PEFT imports modules or reads adapters that the config names."""
MOST_LAYERS = 10_000


def check_adapter_config(config: Any, weights: Path, *, field: str) -> None:
    """Checks a PEFT config beside its `weights`, before PEFT builds what it describes.

    Raises `ModelError` BC064: a kind of adapter that is no change of weights (prompt tuning, X-LoRA), options with
    which PEFT loads further code, a rank above every dimension in the file, layers copied many thousand times, or
    weights that are not a whole file; BC029 where these are missing.
    """
    place = str(weights.with_name("adapter_config.json"))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning or kind == "XLORA":
        problem = f"an adapter of the kind {kind} does not change weights, so it cannot be folded into them"
        raise one(ModelError, "BC064", problem, "Use a LoRA adapter", place=place, field=field)
    if loading := [name for name in LOADING if getattr(config, name, None)]:
        problem = f"the adapter's {loading[0]} makes PEFT load other files, which is not done"
        raise one(ModelError, "BC064", problem, f"Remove {loading[0]} from the file", place=place, field=field)
    largest = _largest_dimension(weights, field)
    for name in RANKS:
        rank = max(_whole_numbers(getattr(config, name, None)), default=0)
        if rank > largest:
            limit = f"{largest} is the largest dimension in {weights.name}"
            raise _too_large(f"the rank {rank} ({name})", limit, place, field)
    layers = sum(_whole_numbers(getattr(config, "layer_replication", None)))
    if layers > MOST_LAYERS:
        raise _too_large("layer_replication", f"at most {MOST_LAYERS} layers can be named", place, field)


def _too_large(what: str, limit: str, place: str, field: str) -> BumbleError:
    problem, fix = f"{what} is larger than the adapter: {limit}", "Copy the adapter again"
    return one(ModelError, "BC064", problem, fix, place=place, field=field)


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield abs(value)
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _whole_numbers(inner)


@contextmanager
def reading(weights: Path, field: str) -> Iterator[None]:
    """Raises `ModelError` BC029 where an adapter's weights are missing, BC064 for whatever reading them raises."""
    if not weights.is_file():
        problem = f"the adapter has no {weights.name}"
        fix = "Copy the adapter again; weights in other formats are not read"
        raise one(ModelError, "BC029", problem, fix, place=str(weights.parent), field=field)
    try:
        yield
    except Exception as error:
        problem = f"not a whole safetensors file ({library_message(error)})"
        raise one(ModelError, "BC064", problem, "Copy the adapter again", place=str(weights), field=field) from error


def _largest_dimension(weights: Path, field: str) -> int:
    from safetensors import safe_open

    with reading(weights, field), safe_open(weights, framework="pt") as tensors:
        names = tensors.keys()
        return max((max(tensors.get_slice(name).get_shape(), default=0) for name in names), default=0)
