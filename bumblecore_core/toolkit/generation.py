"""The generation config of a saved model: the tokens that end its replies, and saving it whatever it holds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bumblecore_core.errors import ModelError, one
from bumblecore_core.toolkit.json_files import read_json_object
from bumblecore_core.toolkit.library_errors import library_message

GENERATION_CONFIG = "generation_config.json"


def add_stop_ids(model: Any, ids: Iterable[int]) -> None:
    """Adds `ids` to the tokens that end generation with `model`, after those that it already has.

    `generation_config.eos_token_id` becomes a list; so does that of the config, where its type allows a list. A model
    that does not generate is left as it is.
    """
    generation = _generation_config(model)
    if generation is None:
        return
    own = generation.eos_token_id
    if own is None:
        own = model.config.eos_token_id if hasattr(model.config, "eos_token_id") else None
    own = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    stop = list(dict.fromkeys([*own, *ids]))
    if stop == own or not stop:
        return
    # A copy: a config class's default may be shared, and a config that failed its check must stay as it was.
    model.generation_config = copy.deepcopy(generation)
    model.generation_config.eos_token_id = stop
    for config in {id(found): found for found in (model.config, model.config.get_text_config())}.values():
        if _takes_list(config):
            config.eos_token_id = stop


def save_model(model: Any, directory: Path, **options: Any) -> None:
    """`model.save_pretrained(directory, **options)`, and the generation config as it is: transformers refuses to save
    one whose settings contradict each other, such as a temperature with `do_sample` false."""
    generation = _generation_config(model)
    if generation is None:
        model.save_pretrained(directory, **options)
        return
    try:
        model.generation_config = type(generation)()
        model.save_pretrained(directory, **options)
    finally:
        model.generation_config = generation
    save_generation_config(model, directory)


def save_generation_config(model: Any, directory: Path) -> None:
    """Writes `generation_config.json` without checking its settings; nothing for a model that does not generate."""
    generation = _generation_config(model)
    if generation is not None:
        generation.to_json_file(directory / GENERATION_CONFIG)


def take_generation_config(model: Any, directory: Path) -> None:
    """Gives `model` the tokens that end generation from the generation config in `directory`, where there is one: a
    fine-tuned adapter ends its replies otherwise than its base. Raises `ModelError` BC064 for an unreadable one."""
    if not (directory / GENERATION_CONFIG).is_file():
        return
    found = read_json_object(directory / GENERATION_CONFIG, "model.path").get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(token, int) for token in ids):
        problem, fix = "eos_token_id is not a token id or a list of them", "Correct the file"
        place = str(directory / GENERATION_CONFIG)
        raise one(ModelError, "BC064", problem, fix, place=place, field="model.path")
    try:
        add_stop_ids(model, ids)
    except (TypeError, ValueError) as error:
        problem, place = library_message(error), str(directory / GENERATION_CONFIG)
        raise one(ModelError, "BC064", problem, "Correct eos_token_id", place=place, field="model.path") from error


def _generation_config(model: Any) -> Any:
    """That of a model that generates, also of one inside an adapter; else None."""
    can_generate = getattr(model, "can_generate", None)
    return getattr(model, "generation_config", None) if can_generate is not None and can_generate() else None


def _takes_list(config: Any) -> bool:
    """Whether the config's class declares that `eos_token_id` may be a list."""
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    return any(field.name == "eos_token_id" and "list" in str(field.type) for field in fields)
