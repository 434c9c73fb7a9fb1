"""Adapter directories as PEFT writes them: finding the base model, attaching, loading with checks, folding in.

An adapter directory holds `adapter_config.json` and `adapter_model.safetensors`, and names the directory of its base
model. That base may be an adapter directory itself, where a run trained an adapter on top of another: all of them make
a chain that ends in a model directory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import BumbleError, ModelError, one
from bumblecore_core.toolkit.adapter_checks import check_adapter_config
from bumblecore_core.toolkit.adapter_tensors import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_KEY,
    load_weights,
    named_base,
    other_base,
    peft_errors,
    quietly,
)
from bumblecore_core.toolkit.generation import take_generation_config
from bumblecore_core.toolkit.json_files import read_json_object
from bumblecore_core.toolkit.library_errors import library_message
from bumblecore_core.toolkit.limits import Exceeded, piece
from bumblecore_core.toolkit.loaded_weights import check_loaded_weights
from bumblecore_core.toolkit.model_config import read_model_config
from bumblecore_core.toolkit.new_tokens import adapter_rows, resize_for_adapter, stated_rows, vocabulary_size
from bumblecore_core.toolkit.packages import MODEL_LIBRARIES, require_supported
from bumblecore_core.toolkit.quiet import quiet_transformers
from bumblecore_core.toolkit.regular_files import require_readable_directory
from bumblecore_core.toolkit.scorers import SCORE_WEIGHT, is_scorer, make_scorer_config
from bumblecore_core.toolkit.tying import correct_tying
from bumblecore_core.toolkit.vision_language import auto_class
from bumblecore_core.toolkit.weight_files import check_weight_files, has_weights

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter rather than a model. An adapter may be stored with the config.json of its
    base, but not with the weights."""
    if not os.path.isfile(directory / ADAPTER_CONFIG):
        return False
    return not os.path.isfile(directory / "config.json") or not has_weights(directory)


def adapter_chain(directory: Path, *, field: str = "model.path") -> tuple[Path, tuple[Path, ...]]:
    """The model directory under `directory`, and the adapters on top of it in the order of folding in (none where
    `directory` is a model itself).

    Raises `ModelError`: BC061 where a base model is not at the place that its adapter names, BC064 for an unreadable
    `adapter_config.json` or a chain that comes back to itself.
    """
    adapters: list[Path] = []
    while is_adapter(directory):
        if directory in adapters:
            fix = f"Correct {BASE_KEY} in {ADAPTER_CONFIG}"
            raise one(ModelError, "BC064", "this adapter is its own base model", fix, place=str(directory), field=field)
        adapters.insert(0, directory)
        directory = _base_of(directory, field)
    return directory, tuple(adapters)


def tokenizer_source(directory: Path) -> Path:
    """The directory whose tokenizer belongs to a model or adapter: its own, or the base's of an adapter without one."""
    base, adapters = adapter_chain(directory)
    for candidate in reversed(adapters):
        if any((candidate / name).is_file() for name in TOKENIZER_FILES):
            return candidate
    return base


def read_adapter_config(directory: Path, *, field: str = "model.path") -> Any:
    """The PEFT config in `directory`, checked. Raises `ModelError` BC064, and `RunError` BC094 for an unsupported
    PEFT."""
    require_supported("peft")
    from peft import PeftConfig

    read_json_object(directory / ADAPTER_CONFIG, field)
    with quietly():
        try:
            config = PeftConfig.from_pretrained(str(directory))
        except Exception as error:
            problem = f"PEFT cannot read this adapter's config: {library_message(error)}"
            fix = "Check that the file is whole, and that your version of PEFT knows this kind of adapter"
            place = str(directory / ADAPTER_CONFIG)
            raise one(ModelError, "BC064", problem, fix, place=place, field=field) from error
    check_adapter_config(config, directory / ADAPTER_WEIGHTS, field=field)
    return config


def attached(model: Any, config: Any, directory: Path, *, field: str = "model.path") -> Any:
    """`model` with the (yet untrained) parts that `config`, read from `directory`, describes. Raises `ModelError` BC033
    where they do not fit the model, BC092 where a regular expression in `config` takes too long."""
    from peft import get_peft_model

    with peft_errors(directory, field):
        _require_quick_patterns(model, config, directory, field)
        try:
            return get_peft_model(model, config)
        except (ValueError, AttributeError) as error:
            problem = f"its modules are not in this model ({library_message(error)})"
            raise other_base(problem, named_base(directory), model, directory, field) from error


def slow_pattern(limit: Exceeded, *, field: str, place: str = "") -> BumbleError:
    """BC092 for a regular expression."""
    problem = f"matching the regular expression with the names of modules took {limit}"
    fix = "Simplify it: nested repetitions such as (a+)+ take exponential time"
    return one(ModelError, "BC092", problem, fix, place=place, field=field)


def _require_quick_patterns(model: Any, config: Any, directory: Path, field: str) -> None:
    """Matches what PEFT will match, under a time limit. What is not a regular expression is left to PEFT."""
    patterns = [getattr(config, name, None) for name in ("target_modules", "exclude_modules")]
    for name in ("rank_pattern", "alpha_pattern"):
        patterns += [rf"(.*\.)?({key})$" for key in getattr(config, name, None) or () if set(key) & set("*+{")]
    try:
        with piece():
            for pattern in patterns:
                if isinstance(pattern, str):
                    matches = re.compile(pattern).fullmatch
                    for name, _ in model.named_modules():
                        matches(name)
    except (re.error, OverflowError, RecursionError):
        return
    except Exceeded as error:
        raise slow_pattern(error, field=field, place=str(directory / ADAPTER_CONFIG)) from None


def fold_in(model: Any, directory: Path) -> Any:
    """The plain model whose weights are those of `model`, an adapter's base, with the adapter of `directory` folded in,
    every parameter trainable. Folding rounds in the model's dtype: load it in float32. Raises `ModelError`."""
    config = read_adapter_config(directory)
    config.inference_mode = False  # what was trained is what must be in the file
    resize_for_adapter(model, directory)
    config.task_type = None  # folding needs none, and a language model's adapter goes into a reward model so
    adapter = attached(model, config, directory)
    load_weights(adapter, directory)
    if not hasattr(adapter, "merge_and_unload"):
        problem, fix = "this kind of adapter cannot be folded into weights", "Use a LoRA adapter"
        raise one(ModelError, "BC064", problem, fix, place=str(directory), field="model.path")
    with peft_errors(directory, "model.path"):
        merged = adapter.merge_and_unload(safe_merge=True)  # refuses weights that are not finite
    take_generation_config(merged, directory)
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    merged.name_or_path = str(directory)
    return merged


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    pad_token_id: int | None = None,
) -> Any:
    """The model of a directory, ready to use, in `dtype` or its own. Of an adapter's directory: its base with the
    adapters folded in float32 (4 bytes a parameter meanwhile) and rounded once. A reward model's batches are filled up
    with `pad_token_id`. Raises `ModelError`, and `RunError` BC094 for an unsupported version of a library."""
    require_supported(*MODEL_LIBRARIES)
    import torch
    from transformers import AutoConfig

    base, adapters = adapter_chain(directory)
    read_model_config(base, "model.path")
    check_weight_files(base)
    try:
        with quiet_transformers():  # it would warn of a score that its adapter brings along
            config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=trust_remote_code)
            correct_tying(config, base)
            scores = is_scorer(base, adapters)
            if scores:
                make_scorer_config(config, pad_token_id)
            model = auto_class(config, "score" if scores else "language_model").from_pretrained(
                str(base),
                config=config,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
    except BumbleError:
        raise
    except Exception as error:
        problem = f"the model cannot be loaded: {library_message(error)}"
        raise one(ModelError, "BC064", problem, "check that its files are whole", place=str(base)) from error
    check_loaded_weights(model, base, fresh=[SCORE_WEIGHT] if adapters else [])  # an adapter can bring its own score
    dtype = dtype or model.dtype
    if adapters:
        resize_for_adapter(model, adapters[0])  # in the dtype in which the base was resized for training
        _cast(model, torch.float32)
    for adapter in adapters:
        model = fold_in(model, adapter)
    _cast(model, dtype)
    return model.eval()


def save_config_if_resized(model: Any, directory: Path) -> None:
    """Writes the config.json of an adapter's base to `directory`, next to the adapter, where its embeddings have more
    rows than the files of the base: so loading the adapter knows how many."""
    if not is_adapter(directory):
        return
    base, adapters = adapter_chain(directory)
    stated = [stated_rows(base / "config.json"), *(adapter_rows(adapter) for adapter in adapters[:-1])]
    if (vocabulary_size(model.config) or 0) > max(stated):
        model.config.save_pretrained(directory)


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Parameters alone: rotary frequencies in half precision would shift positions."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _base_of(directory: Path, field: str) -> Path:
    named = named_base(directory, field=field)
    base = Path(os.path.expanduser(named))
    if named and (is_adapter(base) or os.path.isfile(base / "config.json")):
        require_readable_directory(base, field)
        return base
    place = str(directory / ADAPTER_CONFIG)
    problem = f"the adapter's base model is not at {named!r} (nothing is looked up on the network)"
    if not named:
        problem = "the adapter does not say which base model it was made for"
    fix = f"Put the base model there, or write its directory as {BASE_KEY} into this file"
    raise one(ModelError, "BC061", problem, fix, place=place, field=field)
