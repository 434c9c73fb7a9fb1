"""JSON that a row holds as text, as Arrow and CSV files need for values of several shapes."""

from __future__ import annotations

import json
import re
from typing import Any

from bumblecore_core import RowError
from bumblecore_plugins.data_formats.fields import need_list, wrong_type

_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_BAD_CHARACTER = re.compile("[\ud800-\udfff\0]")


def parse_json(value: str, path: str) -> Any:
    """The value that a JSON text holds. Raises `ValueError` where it is malformed, and `RowError` BC020 where one of
    its texts holds a lone surrogate or a NUL, which the check of the row's own texts does not see."""
    try:
        parsed = json.loads(
            value, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _ESCAPE.search(value) and _holds_bad_text(parsed):
        problem = "the JSON text holds a lone surrogate or a NUL"
        raise RowError(code="BC020", field=path, problem=problem, fix="Remove the character: no tokenizer can read it")
    return parsed


def json_list(value: Any, path: str) -> list[Any]:
    """A list, given as it is or as JSON. Raises `RowError` BC011."""
    if not isinstance(value, str):
        return need_list(value, path)
    try:
        parsed = parse_json(value, path)
    except ValueError:
        raise wrong_type(value, path, "a list, or the JSON of one,") from None
    return need_list(parsed, path)


def _holds_bad_text(value: Any) -> bool:
    if isinstance(value, str):
        return _BAD_CHARACTER.search(value) is not None
    if isinstance(value, dict):
        return any(map(_holds_bad_text, value)) or any(map(_holds_bad_text, value.values()))
    return isinstance(value, list) and any(map(_holds_bad_text, value))


def _finite(number: str) -> float:
    if abs(value := float(number)) == float("inf"):
        raise ValueError(f"{number[:40]} is too large for a number")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
