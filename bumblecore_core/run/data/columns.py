"""Which column of a row probably holds a field that a data format looks for under another name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from bumblecore_core.config.resolved import Selected
from bumblecore_core.records import DataFormatRecord

LONGEST_KEY = 40
SYNONYMS = {
    "instruction": ("question", "prompt", "query", "task"),
    "output": ("answer", "response", "completion", "reply"),
    "text": ("content", "body", "document"),
    "messages": ("conversation", "conversations", "chat", "dialog"),
    "conversations": ("conversation", "messages", "chat", "dialog"),
    "prompt": ("question", "instruction", "query"),
    "completion": ("answer", "response", "output"),
    "chosen": ("preferred", "accepted", "better"),
    "rejected": ("dispreferred", "worse"),
}
YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "y", "n", "null")


def mapping_fix(chosen: Selected[DataFormatRecord], field: str, row: Mapping[str, Any]) -> str:
    """The fix for a `field` that no row has: the option of the format that names it, and the column that it could name.
    Empty if no option names the field, or no column is left. The user checks the column: it is only likely."""
    options = chosen.options.model_dump()
    option = next((name for name, value in options.items() if value == field), None)
    free = free_columns(options, row)
    if option is None or not free:
        return ""
    column = likely_column(field, free) or free[0]
    named = {"name": chosen.record.name, **chosen.options.model_dump(exclude_defaults=True), option: column}
    return f"Name the column that holds it, such as data.format: {yaml_of(named)}"


def likely_columns(options: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, str]:
    """For each option that names a field which `row` lacks, the column that probably holds it, if there is one."""
    found: dict[str, str] = {}
    for option, field in options.items():
        free = [column for column in free_columns(options, row) if column not in found.values()]
        if isinstance(field, str) and field not in row and (column := likely_column(field, free)):
            found[option] = column
    return found


def likely_column(field: str, columns: list[str]) -> str | None:
    """The column that is spelt like `field`, or means the same."""
    same = [column for column in columns if column.lower() in SYNONYMS.get(field, ())]
    return next(iter([*difflib.get_close_matches(field, columns, n=1), *same]), None)


def free_columns(options: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """The columns that no option names."""
    return [key for key in row if key not in options.values() and len(key) <= LONGEST_KEY]


def yaml_of(mapping: Mapping[str, Any]) -> str:
    """A flow mapping on one line."""
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in mapping.items()) + "}"


def _scalar(value: Any) -> str:
    """Text is quoted unless it is a plain word."""
    plain = (
        isinstance(value, str) and re.fullmatch("[A-Za-z_][A-Za-z_0-9-]*", value) and value.lower() not in YAML_WORDS
    )
    return str(value) if plain else json.dumps(value, ensure_ascii=False, default=str)
