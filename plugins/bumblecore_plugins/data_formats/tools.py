"""Tool definitions and tool calls, to the shape that transformers' chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bumblecore_core import RowError
from bumblecore_plugins.data_formats.fields import is_null, type_name
from bumblecore_plugins.data_formats.json_text import parse_json
from bumblecore_plugins.data_formats.notes import RowNotes
from bumblecore_plugins.data_formats.padding import holds_padding, without_nulls

CALL_KEYS = frozenset({"type", "id", "function", "index"})
FUNCTION_KEYS = frozenset({"name", "arguments"})


def tool_definitions(value: Any, path: str, notes: RowNotes) -> tuple[dict[str, Any], ...] | None:
    """A row's tools, given as a list or as JSON, as `{"type": "function", "function": {…}}`. None where there are none,
    for which rows also hold an empty text, `null` as text, `{}` or `[{}]`.

    Raises `RowError` BC019 with the index of a definition that is malformed.
    """
    items = _parsed(value, path)
    if is_null(items):
        return None
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list):
        raise malformed(path, f"tools are {type_name(items)}, not a list of definitions")
    given = [(f"{path}[{index}]", item) for index, item in enumerate(items) if item != {} and not is_null(item)]
    return tuple(_definition(item, where, notes) for where, item in given) or None


def tool_calls(value: Any, path: str, notes: RowNotes) -> list[dict[str, Any]]:
    """The calls of a message: one of them or a list, as objects or as JSON. Raises `RowError` BC019."""
    parsed = _parsed(value, path)
    if isinstance(parsed, list):
        return [_call(call, f"{path}[{index}]", notes) for index, call in enumerate(parsed)]
    return [] if is_null(parsed) else [_call(parsed, path, notes)]


def malformed(path: str, problem: str) -> RowError:
    """BC019."""
    fix = 'Write a call as {"name": "…", "arguments": {…}} and tools as a list of JSON definitions'
    return RowError(code="BC019", field=path, problem=problem, fix=fix)


def _call(value: Any, path: str, notes: RowNotes) -> dict[str, Any]:
    """A call `{"name": …, "arguments": …}`, bare or below `function`, as a template reads it: arguments as an object,
    or as text where they are not JSON."""
    if not isinstance(value, Mapping):
        raise malformed(path, f"the call is {type_name(value)}, not an object")
    inner = value.get("function")
    function = inner if isinstance(inner, Mapping) and not is_null(inner) else value
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise malformed(path, "the call names no function")
    if "arguments" not in function:
        raise malformed(path, "the call has no arguments (an empty object is written {})")
    arguments = _arguments(function["arguments"], f"{path}.arguments", notes)
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if value.get("id") is not None:
        call["id"] = _identifier(value["id"], f"{path}.id")
    if function is value:
        notes.account(value, CALL_KEYS | FUNCTION_KEYS, "tool call", path)
    else:
        notes.account(value, CALL_KEYS, "tool call", path)
        notes.account(function, FUNCTION_KEYS, "tool call", path)
    return call


def _arguments(value: Any, path: str, notes: RowNotes) -> dict[str, Any] | str:
    if isinstance(value, str) and value.strip() not in ("", "null") and value.lstrip()[0] not in "{[":
        return value  # code, which some tools are passed
    parsed = _parsed(value, path)
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise malformed(path, f"the arguments are {type_name(parsed)}, not an object")
    arguments: dict[str, Any] = without_nulls(parsed) if parsed is value and notes.padded else parsed
    return arguments


def _definition(value: Any, path: str, notes: RowNotes) -> dict[str, Any]:
    definition: dict[str, Any] = _parsed(value, path)
    if not isinstance(definition, dict):
        raise malformed(path, f"the definition is {type_name(definition)}, not an object")
    if definition is value and notes.padded and holds_padding(definition):
        definition = without_nulls(definition)
    if "function" in definition:
        if not isinstance(definition["function"], dict):
            raise malformed(path, f"the definition's function is {type_name(definition['function'])}, not an object")
        inner = definition["function"]
    elif "name" in definition:
        # the bare form: templates look for the name below `function`
        inner = definition
        definition = {"type": "function", "function": inner}
    else:
        return definition  # a tool of another sort than a function, such as a built-in one
    if not isinstance(inner.get("name"), str):
        raise malformed(path, "the definition names no function")
    return definition


def _identifier(value: Any, path: str) -> str:
    if isinstance(value, str) or type(value) is int:
        return str(value)
    raise malformed(path, f"the call's id is {type_name(value)}, not text")


def _parsed(value: Any, path: str) -> Any:
    """`value`, parsed where it is text; an empty text is null."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_json(value, path)
    except ValueError as error:
        at = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise malformed(path, f"not valid JSON{at}") from None
