"""From a YAML file to a run whose every choice is a plugin's record with typed options."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from bumblecore_core import records
from bumblecore_core.config.conflicts import conflicts, drop_beaten
from bumblecore_core.config.keys import KeyPath, dotted
from bumblecore_core.config.load import LoadedConfig, load_config
from bumblecore_core.config.overrides import COMMAND_LINE
from bumblecore_core.config.problems import described, misread, problems_of
from bumblecore_core.config.resolved import ResolvedRun, Selected, assembled, leaves
from bumblecore_core.config.schema import RunConfig
from bumblecore_core.config.shape import (
    AUTO,
    choice_paths,
    default_loggers,
    default_name,
    is_written,
    kind_at,
    lookup,
    sections,
)
from bumblecore_core.errors import ConfigError, PluginError, Problem, one

LARGEST_FLOAT = float(2**128 - 2**104)  # of float32
_OCTAL = re.compile(r"[-+]?0[0-7_]+\Z")


class Plugins(Protocol):
    """What resolution needs of the registry."""

    def get(self, kind: str, name: str) -> Any:
        """The record of that kind and name. Raises `PluginError`."""
        ...

    def all(self, kind: str) -> Iterable[Any]:
        """Everything of a kind: objects whose `record` is the record."""
        ...


def load_run(path: str | Path, overrides: Sequence[str], registry: Plugins) -> ResolvedRun:
    """`resolve(load_config(path, overrides), registry)`."""
    return resolve(load_config(path, overrides), registry)


def resolve(loaded: LoadedConfig, registry: Plugins) -> ResolvedRun:
    """The run that `loaded` describes.

    Raises `ConfigError` with all problems of the file: BC034 unknown key, BC037 text that YAML read as something else,
    BC038 wrong type or range, BC039 conflict, BC056 unknown plugin (`PluginError` where plugins are the only problem).
    A plugin's options model reports conflicting options by raising `ValueError("… conflicts with …")` in a validator.
    """
    data = copy.deepcopy(loaded.data)
    data.setdefault("loggers", default_loggers())
    drop_beaten(loaded, data)
    loaded = replace(loaded, data=data)
    chosen: dict[KeyPath, Selected[Any]] = {}
    problems: list[Problem] = []
    plugin_problems: list[Problem] = []
    for path in choice_paths(data):
        try:
            selected = _select(path, loaded, registry, chosen)
        except PluginError as error:
            plugin_problems += [_placed(problem, path, loaded) for problem in error.problems]
        except ConfigError as error:
            problems += error.problems
        else:
            if selected is not None:
                chosen[path] = selected
    try:
        _check_attention(loaded, registry)
    except PluginError as error:
        plugin_problems += [_placed(problem, ("model", "attention"), loaded) for problem in error.problems]
    try:
        config = _validated(RunConfig, data, (), loaded, _elsewhere(chosen))
    except ConfigError as error:
        problems += error.problems
    picked = {key: selected.record for (key, *_), selected in chosen.items()}
    problems += conflicts(
        loaded, data, stage=picked.get("stage"), loss=picked.get("loss"), scheduler=picked.get("scheduler")
    )
    reported = {problem.field for problem in problems}
    numbers = (*_ambiguous_numbers(loaded), *_oversized_numbers(loaded))
    problems += [problem for problem in numbers if problem.field not in reported]
    if problems or plugin_problems:
        kind = ConfigError if problems else PluginError
        raise kind(sorted(problems + plugin_problems, key=_line))
    return assembled(loaded, config, chosen)


def _select(
    path: KeyPath, loaded: LoadedConfig, registry: Plugins, chosen: Mapping[KeyPath, Selected[Any]]
) -> Selected[Any] | None:
    """What the choice at `path` picks; None where it picks nothing, or is no choice, which the schema then reports."""
    value = lookup(loaded.data, path)
    if value is None and path != ("loss",):
        name = default_name(path)
        value = {"name": name} if name and not is_written(loaded.data, path) else None
    elif path == ("loss",) and ("stage",) in chosen:
        own = chosen["stage",].record.default_loss
        value = {"name": own} if value is None else {"name": own, **value} if isinstance(value, dict) else value
    elif isinstance(value, dict) and default_name(path) is not None:
        value = {"name": default_name(path), **value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    _write_name(path, value["name"], loaded)
    options = {key: option for key, option in value.items() if key != "name"}
    if kind_at(path) == "data_formats" and value["name"] == AUTO:
        _validated(records.NoOptions, options, path, loaded, {})
        return None
    record = registry.get(str(kind_at(path)), value["name"])
    try:
        return Selected(record, _validated(record.options, options, path, loaded, {}))
    except ConfigError:
        raise
    except Exception as error:
        problem = f"checking the options of '{record.name}' raised {type(error).__name__}"
        problem += f" (module {record.options.__module__})"
        raise one(PluginError, "BC060", problem, "Report this to the plugin's author") from error


def _write_name(path: KeyPath, name: str, loaded: LoadedConfig) -> None:
    """Complete a choice that has options but leaves the name to its default, so that the schema finds one."""
    written = lookup(loaded.data, path)
    if isinstance(written, dict):
        written.setdefault("name", name)


M = TypeVar("M", bound=BaseModel)


def _validated(
    model: type[M], data: Mapping[str, Any], path: KeyPath, loaded: LoadedConfig, elsewhere: Mapping[str, str]
) -> M:
    """`data` as `model`, checked as JSON in strict mode: `"3"` is no number, `1` is not true, a list may be a tuple."""
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = problems_of(error, model=model, prefix=path, loaded=loaded, elsewhere=elsewhere)
        raise ConfigError(problems) from None


def _check_attention(loaded: LoadedConfig, registry: Plugins) -> None:
    name = lookup(loaded.data, ("model", "attention"))
    if isinstance(name, str) and name != AUTO:
        registry.get("attentions", name)


def _placed(problem: Problem, path: KeyPath, loaded: LoadedConfig) -> Problem:
    return replace(problem, place=problem.place or loaded.place(path), field=problem.field or dotted(path))


def _elsewhere(chosen: Mapping[KeyPath, Selected[Any]]) -> dict[str, str]:
    """Dotted places by key: of the sections' keys, then of the chosen plugins' options."""
    places = {key: f"{name}.{key}" for name, section in sections().items() for key in section.model_fields}
    for path, selected in chosen.items():
        for key in type(selected.options).model_fields:
            places.setdefault(key, f"{dotted(path)}.{key}")
    return places


def _ambiguous_numbers(loaded: LoadedConfig) -> Iterator[Problem]:
    """BC037 for `010`, which YAML reads as 8: whoever wrote it meant 10, or text."""
    for path, spelled in loaded.spelled.items():
        value = lookup(loaded.data, path)
        if _OCTAL.match(spelled) and isinstance(value, int) and not isinstance(value, bool):
            problem = misread(path, value, spelled, loaded)
            yield replace(
                problem, problem=f"YAML reads {spelled} as {value}", fix=f"{problem.fix}; a number without the 0"
            )


def _oversized_numbers(loaded: LoadedConfig) -> Iterator[Problem]:
    """BC038 for what float32 cannot hold: torch raises in the first step, far from the option."""
    for path in leaves(loaded.data):
        value = lookup(loaded.data, path)
        if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
            problem = f"expected a number up to {LARGEST_FLOAT:.2g}, which float32 can hold, got {described(value)}"
            place = loaded.place(path)
            yield Problem(code="BC038", problem=problem, fix="Write a smaller number", place=place, field=dotted(path))


def _line(problem: Problem) -> tuple[bool, int]:
    number = problem.place.rpartition(":")[2]
    return problem.place == COMMAND_LINE, int(number) if number.isascii() and number.isdigit() else 0
