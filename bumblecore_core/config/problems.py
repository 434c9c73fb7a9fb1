"""Turns pydantic's errors into problems that name place, key, what was expected and what was written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bumblecore_core.config.keys import KeyPath, dotted, shown
from bumblecore_core.config.load import LoadedConfig
from bumblecore_core.config.overrides import COMMAND_LINE
from bumblecore_core.config.shape import is_written, keys_at, kind_at, lookup
from bumblecore_core.errors import Problem, did_you_mean

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "none_required": "null",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_short": "a list that is not empty",
    "tuple_type": "a list",
}
_TEXT_ERRORS = frozenset({"string_type", "path_type"})
_CHOICE = "a plugin's name or {name: …, option: …}"


def problems_of(
    error: ValidationError,
    *,
    model: type[BaseModel],
    prefix: KeyPath,
    loaded: LoadedConfig,
    elsewhere: Mapping[str, str],
) -> list[Problem]:
    """The problems of one failed validation of the data at `prefix` against `model`.

    BC034 unknown key, BC037 text that YAML read as something else, BC038 wrong type or range, BC039 a validator's
    `ValueError` that speaks of a conflict. `elsewhere`: dotted places by key, to say where a misplaced key belongs.
    """
    data = lookup(loaded.data, prefix)
    by_place: dict[tuple[KeyPath, bool], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        unknown = detail["type"] == "extra_forbidden"
        by_place.setdefault((_written_path(detail, data), unknown), []).append(detail)
    problems = []
    outer = {path[:length] for path, _ in by_place for length in range(len(path))}
    for (path, unknown), details in by_place.items():
        if path in outer and not unknown:
            continue  # a union reports the whole value too, for the branches that are further off
        full = (*prefix, *path)
        if unknown:
            keys = keys_at(model, path[:-1])
            problems.append(_unknown_key(full, keys, loaded, elsewhere))
        elif all(detail["type"] == "missing" for detail in details):
            problems.append(_missing(full, loaded))
        else:
            problems.append(_wrong_value(full, details, loaded))
    return problems


def _written_path(detail: ErrorDetails, data: Any) -> KeyPath:
    """pydantic's location without the names that it adds for a union's branches: only keys and indices of the data."""
    path: KeyPath = ()
    location = detail["loc"]
    for position, part in enumerate(location):
        absent = detail["type"] == "missing" and position == len(location) - 1
        if absent or is_written(data, (*path, part)):
            path = (*path, part)
    return path


def _unknown_key(path: KeyPath, keys: Sequence[str], loaded: LoadedConfig, elsewhere: Mapping[str, str]) -> Problem:
    key = shown(str(path[-1]))
    fix = did_you_mean(key, keys)
    if not fix.startswith("did") and key in elsewhere:
        fix = f"did you mean '{elsewhere[key]}'?"
    fix = "this takes no options" if not keys else fix
    return Problem(code="BC034", problem="unknown key", fix=_capital(fix), place=loaded.place(path), field=dotted(path))


def _missing(path: KeyPath, loaded: LoadedConfig) -> Problem:
    place = loaded.place(path[:-1])
    return Problem(code="BC038", problem="required, but not set", fix="Add this key", place=place, field=dotted(path))


def _wrong_value(path: KeyPath, details: Sequence[ErrorDetails], loaded: LoadedConfig) -> Problem:
    place, name = loaded.place(path), dotted(path)
    conflict = next((detail for detail in details if detail["type"] in ("value_error", "assertion_error")), None)
    if conflict is not None:
        code = "BC039" if "conflict" in conflict["msg"].lower() else "BC038"
        text = re.sub(r"^(Value error|Assertion failed), ", "", conflict["msg"])
        fix = "Set only one of them" if code == "BC039" else "Change the value"
        return Problem(code=code, problem=text, fix=fix, place=place, field=name)
    value, spelled = lookup(loaded.data, path), loaded.spelled.get(path)
    if spelled is not None and not isinstance(value, str) and (kind_at(path) or _wants_text(details, spelled)):
        return misread(path, value, spelled, loaded)
    expected = _CHOICE if kind_at(path) else " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    problem = f"expected {expected}, got {described(value)}"
    fix = f"Write {expected}"
    if isinstance(value, str) and _is_number(value) and "number" in expected:
        fix = "Remove the quotes"
    return Problem(code="BC038", problem=problem, fix=fix, place=place, field=name)


def misread(path: KeyPath, value: Any, spelled: str, loaded: LoadedConfig) -> Problem:
    """BC037: `spelled` was meant as text, and YAML read it as `value`."""
    place = loaded.place(path)
    quoted = f'"{shown(spelled)}"'
    fix = f"Write {COMMAND_LINE} '{dotted(path)}={quoted}'" if place == COMMAND_LINE else f"Put it in quotes: {quoted}"
    if path in (("adapter",), ("loss",)):
        fix += ", or write null for none" if path == ("adapter",) else ", or write null for the stage's own"
    problem = f"expected text, but YAML reads {shown(spelled)} as {described(value)}"
    return Problem(code="BC037", problem=problem, fix=fix, place=place, field=dotted(path))


def _wants_text(details: Sequence[ErrorDetails], spelled: str) -> bool:
    choices = [str(detail.get("ctx", {}).get("expected", "")) for detail in details]
    return any(detail["type"] in _TEXT_ERRORS for detail in details) or any(
        f"'{spelled}'" in choice for choice in choices
    )


def _expected(detail: ErrorDetails) -> str:
    known = _EXPECTED.get(detail["type"])
    if known is not None:
        return known
    message = " ".join(detail["msg"].split())
    for opening in ("Input should be ", "Input should have ", "Input should "):
        if message.startswith(opening):
            rest = message.removeprefix(opening)
            return f"a value {rest}" if rest.startswith(("greater", "less")) else rest
    return f"something else ({message})"


def described(value: Any) -> str:
    """A value in words fit for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{shown(value)}'"
    if isinstance(value, dict):
        return "a mapping of keys"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return shown(f"{value:.6g}" if isinstance(value, int) and abs(value) > 10**18 else str(value))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
