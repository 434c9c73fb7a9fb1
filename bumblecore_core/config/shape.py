"""The shape of a config: where plugin choices and file lists are, and their short spellings.

A short spelling (`optimizer: adamw`, `data: {path: a.json}`) is expanded once, straight after reading, so that
overrides, error places and origins deal with one form alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bumblecore_core.config.keys import KeyPath
from bumblecore_core.config.schema import PluginChoice, RunConfig, Section
from bumblecore_core.registry.options import is_subclass, nested_models

CHOICES: Mapping[str, str] = {
    "stage": "stages",
    "loss": "losses",
    "optimizer": "optimizers",
    "scheduler": "schedulers",
    "engine": "engines",
    "adapter": "adapters",
    "data.format": "data_formats",
    "data.path.*.format": "data_formats",
    "data.eval_path.*.format": "data_formats",
    "loggers.*": "loggers",
}
"""Each place of a plugin choice (`*`: a list index), and the kind of plugin that it picks."""

FILE_LISTS: tuple[KeyPath, ...] = (("data", "path"), ("data", "eval_path"))
AUTO = "auto"


def kind_at(path: KeyPath) -> str | None:
    """The kind of plugin that the value at `path` picks, or None where it is no choice."""
    return CHOICES.get(".".join("*" if isinstance(part, int) else part for part in path))


def sections() -> dict[str, type[Section]]:
    """The sections of a config by key, such as `train`."""
    return {name: kind for name, field in RunConfig.model_fields.items() if (kind := _section(field)) is not None}


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if is_subclass(kind, Section) else None


def default_name(path: KeyPath) -> str | None:
    """The name that a choice has when none is written; None where there is no fixed one (stage, loss, adapter)."""
    if path == ("data", "format"):
        return AUTO
    field = RunConfig.model_fields.get(str(path[0])) if len(path) == 1 else None
    return field.default.name if field is not None and isinstance(field.default, PluginChoice) else None


def default_loggers() -> list[dict[str, Any]]:
    """The loggers of a run that names none, in expanded form."""
    return [{"name": choice.name} for choice in RunConfig.model_fields["loggers"].default]


def choice_paths(data: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Where `data`, in expanded form, has plugin choices: those outside lists always, those in lists by their items."""
    for place in CHOICES:
        parts = place.split(".")
        if "*" not in parts:
            yield tuple(parts)
            continue
        star = parts.index("*")
        items = lookup(data, tuple(parts[:star]))
        for index in range(len(items) if isinstance(items, list) else 0):
            yield (*parts[:star], index, *parts[star + 1 :])


def lookup(data: Any, path: KeyPath) -> Any:
    """The value at `path`; None where there is none."""
    for part in path:
        if isinstance(data, dict) and isinstance(part, str):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def is_written(data: Any, path: KeyPath) -> bool:
    """Whether `data` holds something at `path`, be it null."""
    parent, last = lookup(data, path[:-1]), path[-1]
    return last in parent if isinstance(parent, dict) else isinstance(parent, list) and last in range(len(parent))


def expand(data: Any, origins: dict[KeyPath, str], path: KeyPath = ()) -> Any:
    """`data` with short spellings written out; the new keys get the origin of what they were written as.

    A choice's name becomes `{name: …}`; a file becomes `{path: …}`, one file a list; an empty section becomes `{}`.
    """
    if data is None and len(path) == 1 and path[0] in sections():
        return {}
    if path in FILE_LISTS and data is not None and not isinstance(data, list):
        _move(origins, path, (*path, 0))
        data = [data]
    if isinstance(data, str) and path[:-1] in FILE_LISTS:
        data = _wrapped(data, "path", path, origins)
    if isinstance(data, str) and kind_at(path) is not None:
        data = _wrapped(data, "name", path, origins)
    if isinstance(data, dict):
        return {key: expand(value, origins, (*path, key)) for key, value in data.items()}
    if isinstance(data, list):
        return [expand(value, origins, (*path, index)) for index, value in enumerate(data)]
    return data


def _wrapped(data: str, key: str, path: KeyPath, origins: dict[KeyPath, str]) -> dict[str, str]:
    if path in origins:
        inner = (*path, key)
        origins[inner] = origins[path]
    return {key: data}


def _move(origins: dict[KeyPath, str], old: KeyPath, new: KeyPath) -> None:
    """Let what was noted below `old` be noted below `new`; `old` itself stays noted too."""
    for path in [path for path in origins if path[: len(old)] == old]:
        origins[new + path[len(old) :]] = origins[path] if path == old else origins.pop(path)


def keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that may be written in the mapping at `path` below `model` (of any of a union's models)."""
    models = [model]
    for part in path:
        if isinstance(part, str):
            fields = [field for owner in models for key, field in _named_fields(owner) if key == part]
            models = [found for field in fields for found in nested_models(field.annotation)]
    return sorted({key for owner in models for key, _ in _named_fields(owner)})


def _named_fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [(field.alias or name, field) for name, field in model.model_fields.items()]
