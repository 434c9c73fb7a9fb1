"""Reading a row's fields: each helper raises `RowError` with the path of what is wrong, never with its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bumblecore_core import RowError

MOST_KEYS = 12
DEEPEST = 32
MISSING = object()
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "tools": ("functions",),
    "chosen": ("chosen_messages",),
    "rejected": ("rejected_messages",),
    "label": ("kto_tag",),
    "kto_tag": ("label",),
}
"""Names that other tools give to the field of a default name."""


def lookup(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field, where a dotted `name` leads into nested objects; `MISSING` where it is not there."""
    value = row.get(name, MISSING)
    if value is not MISSING or "." not in name:
        return value
    head, _, rest = name.partition(".")
    inner = row.get(head)
    return lookup(inner, rest) if isinstance(inner, Mapping) else MISSING


def is_given(row: Mapping[str, Any], name: str) -> bool:
    """Whether a field is there and neither null nor an object that only holds nulls, as Arrow pads with."""
    value = lookup(row, name)
    return value is not MISSING and not is_null(value)


def is_filled(row: Mapping[str, Any], name: str) -> bool:
    """Whether an optional field is given: an empty text, such as a cell of a CSV file, is not."""
    return is_given(row, name) and lookup(row, name) != ""


def is_null(value: Any, levels: int = DEEPEST) -> bool:
    """Whether `value` is null or an object whose members all are, within this many levels."""
    if not isinstance(value, dict):
        return value is None
    return bool(value) and levels > 0 and all(is_null(member, levels - 1) for member in value.values())


def field_name(row: Mapping[str, Any], name: str) -> str:
    """`name`, or where the row does not have it the other name of the same field that it has."""
    if is_filled(row, name):
        return name
    return next((other for other in OTHER_NAMES.get(name, ()) if is_filled(row, other)), name)


def need(row: Mapping[str, Any], name: str, path: str = "") -> Any:
    """The value of a field that must be there. Raises BC007 with the keys found."""
    value = lookup(row, name)
    if value is MISSING:
        found = ", ".join(str(key)[:40] for key in list(row)[:MOST_KEYS]) or "none"
        raise RowError(
            code="BC007",
            field=join(path, name),
            problem=f"the field is missing; keys found: {found}",
            fix="Add it, or name the field that holds it in the options of data.format",
        )
    return value


def text(value: Any, path: str) -> str:
    """`value` if it is text. Raises BC011 with the type found."""
    if isinstance(value, str):
        return value
    raise wrong_type(value, path, "text")


def optional_text(row: Mapping[str, Any], name: str, path: str = "") -> str:
    """The text of a field that may be missing or null: then empty."""
    return text(lookup(row, name), join(path, name)) if is_given(row, name) else ""


def boolean(value: Any, path: str) -> bool:
    """`value` if it is true or false. Raises BC011: a 1 or a text could mean anything."""
    if isinstance(value, bool):
        return value
    raise wrong_type(value, path, "true or false")


def need_list(value: Any, path: str) -> list[Any]:
    """`value` if it is a list. Raises BC011."""
    if isinstance(value, list):
        return value
    raise wrong_type(value, path, "a list")


def need_object(value: Any, path: str) -> dict[str, Any]:
    """`value` if it is an object. Raises BC011."""
    if isinstance(value, dict):
        return value
    raise wrong_type(value, path, "an object")


def wrong_type(value: Any, path: str, needed: str) -> RowError:
    """BC011: what `value` is, and what is needed."""
    return RowError(
        code="BC011",
        field=path,
        problem=f"{type_name(value)} where {needed} is needed",
        fix=f"Write {needed} here, or leave the row out",
    )


def type_name(value: Any) -> str:
    """A value's type in JSON's words."""
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "a boolean", int: "an integer", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else f"a {type(value).__name__}")


def join(path: str, name: str) -> str:
    """`path.name`, or `name` at the top of a row."""
    return f"{path}.{name}" if path else name
