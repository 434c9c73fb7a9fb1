"""Tool definitions and tool calls, to the shape that transformers' chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bumblecore_core import RowError
from bumblecore_plugins.data_formats.fields import type_name


def tool_definitions(value: Any, path: str) -> tuple[dict[str, Any], ...] | None:
    """A row's tools, given as a list or as JSON, as `{"type": "function", "function": {…}}`; None where there are none.

    Raises `RowError` BC019 with the index of a definition that is malformed.
    """
    if value is None or value == "":
        return None
    items = _parsed(value, path)
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list):
        raise malformed(path, f"tools are {type_name(items)}, not a list of definitions")
    return tuple(_definition(item, f"{path}[{index}]") for index, item in enumerate(items)) or None


def tool_call(value: Any, path: str) -> dict[str, Any]:
    """A call `{"name": …, "arguments": …}`, bare or below `function`, as a template reads it: arguments as an object.

    Raises `RowError` BC019 at `path`, which holds the call's index.
    """
    call = value
    if not isinstance(call, Mapping):
        raise malformed(path, f"the call is {type_name(call)}, not an object")
    inner = call.get("function")
    function = inner if isinstance(inner, Mapping) else call
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise malformed(path, "the call names no function")
    if "arguments" not in function:
        raise malformed(path, "the call has no arguments (an empty object is written {})")
    result: dict[str, Any] = {
        "type": "function",
        "function": {"name": name, "arguments": _arguments(function["arguments"], f"{path}.arguments")},
    }
    if call.get("id") is not None:
        result["id"] = call["id"]
    return result


def parsed_calls(value: str, path: str) -> list[dict[str, Any]]:
    """The calls of a `function_call` turn: the JSON of one call or of a list of them. Raises `RowError` BC019."""
    parsed = _parsed(value, path)
    if not isinstance(parsed, list):
        return [tool_call(parsed, path)]
    if not parsed:
        raise malformed(path, "the list of calls is empty")
    return [tool_call(call, f"{path}[{index}]") for index, call in enumerate(parsed)]


def malformed(path: str, problem: str) -> RowError:
    """BC019."""
    fix = 'Write a call as {"name": "…", "arguments": {…}} and tools as a list of JSON definitions'
    return RowError(code="BC019", field=path, problem=problem, fix=fix)


def _arguments(value: Any, path: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    parsed = _parsed(value, path)
    if not isinstance(parsed, dict):
        raise malformed(path, f"the arguments are {type_name(parsed)}, not an object")
    return parsed


def _definition(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = _parsed(value, path)
    if not isinstance(value, dict):
        raise malformed(path, f"the definition is {type_name(value)}, not an object")
    if "function" in value:
        if not isinstance(value["function"], dict):
            raise malformed(path, f"the definition's function is {type_name(value['function'])}, not an object")
        inner = value["function"]
    elif "name" in value:
        # the bare form: templates look for the name below `function`
        inner = value
        value = {"type": "function", "function": inner}
    else:
        return value  # a tool of another sort than a function, such as a built-in one
    if not isinstance(inner.get("name"), str):
        raise malformed(path, "the definition names no function")
    return value


def _parsed(value: Any, path: str) -> Any:
    """`value`, parsed where it is text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        at = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise malformed(path, f"not valid JSON{at}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
