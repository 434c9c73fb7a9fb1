"""Nulls that Arrow and Parquet add: a struct has the members of all rows' structs, and those that a row lacks are null.

Rows of a JSON file may be such rows as well, written by a library that holds tables in Arrow. In those, all objects of
one list have the same keys, with values of the same types. A row with a list whose objects differ is not from Arrow,
and its nulls are the author's.
"""

from __future__ import annotations

from typing import Any

from bumblecore_plugins.data_formats.fields import is_null

MAY_BE_NULL = frozenset({"default", "const", "example"})


def looks_padded(value: Any) -> bool:
    """Whether a row can come from Arrow: the objects of each of its lists are alike, at every depth."""
    if isinstance(value, dict):
        return all(map(looks_padded, value.values()))
    if not isinstance(value, list):
        return True
    objects = [item for item in value if isinstance(item, dict)]
    return all(_alike(objects[0], other) for other in objects[1:]) and all(map(looks_padded, value))


def without_nulls(value: Any) -> Any:
    """`value` without the members of its objects that are null, or that are objects of nothing but nulls."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if not is_null(member)}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def holds_padding(definition: Any) -> bool:
    """Whether a tool's definition holds a null that no author writes: JSON Schema has some that mean null."""
    if isinstance(definition, dict):
        nulls = any(is_null(member) and key not in MAY_BE_NULL for key, member in definition.items())
        return nulls or any(map(holds_padding, definition.values()))
    return isinstance(definition, list) and any(map(holds_padding, definition))


def _alike(one: Any, other: Any) -> bool:
    """Whether two values can be of one Arrow type."""
    if one is None or other is None:
        return True
    if isinstance(one, list) and isinstance(other, list):
        return _alike(*(next((item for item in items if isinstance(item, dict)), None) for items in (one, other)))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return not any(isinstance(one, kind) != isinstance(other, kind) for kind in (str, list, dict))
