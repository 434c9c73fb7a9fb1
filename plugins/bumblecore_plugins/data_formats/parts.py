"""A message's content: text, or a list of typed parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from bumblecore_core import RowError
from bumblecore_plugins.data_formats.fields import is_null, join, need, need_object, text, wrong_type
from bumblecore_plugins.data_formats.notes import MEDIA, RowNotes, media_error
from bumblecore_plugins.data_formats.padding import without_nulls
from bumblecore_plugins.data_formats.tools import tool_calls
from bumblecore_plugins.data_formats.turns import keyword

TEXT = frozenset({"text", "input_text", "output_text"})
REASONING = frozenset({"reasoning", "thinking"})
CALL = frozenset({"tool_call", "function_call"})
HELD_BY = ("text", "value", "reasoning", "thinking")
"""Keys of a part that may hold its text."""


class Content(NamedTuple):
    """What the parts of a message hold. `calls`: see `tool_calls`."""

    text: str
    reasoning: str = ""
    calls: tuple[dict[str, Any], ...] = ()


def read_content(value: Any, path: str, notes: RowNotes, *, assistant: bool = False) -> Content:
    """Text, or the joined parts of a list: `{"type": "text", "text": …}`, where `value` may hold the text as well. The
    `assistant`'s may also be of the types reasoning and tool_call. Raises `RowError` BC007, BC011, BC019, BC084."""
    if not isinstance(value, list):
        return Content(text(value, path))
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, item in enumerate(value):
        here = f"{path}[{index}]"
        part = need_object(item, here)
        kind = text(need(part, "type", here), join(here, "type"))
        if kind in TEXT:
            texts.append(_text_of(part, here, notes))
        elif kind in MEDIA:
            raise media_error(join(here, "type"))
        elif assistant and kind in REASONING:
            reasoning.append(_text_of(part, here, notes))
        elif assistant and kind in CALL:
            calls += tool_calls(_text_of(part, here, notes), join(here, "value"), notes)
        else:
            raise _other_part(kind, join(here, "type"))
    return Content("".join(texts), "".join(reasoning), tuple(calls))


def read_result(value: Any, path: str, notes: RowNotes) -> str:
    """The content of a tool's message: text or text parts, or any other JSON value as JSON text."""
    if isinstance(value, list) and all(map(_is_part, value)):
        return read_content(value, path, notes).text
    if value is None or isinstance(value, str):
        return text(value, path)
    try:
        return json.dumps(without_nulls(value) if notes.padded else value, ensure_ascii=False)
    except (TypeError, ValueError):  # a value that only Arrow has, such as a date
        raise wrong_type(value, path, "text or a JSON value") from None


def _is_part(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("type"), str) and item["type"] in TEXT | MEDIA


def _text_of(part: Mapping[str, Any], path: str, notes: RowNotes) -> str:
    key = next((key for key in HELD_BY if not is_null(part.get(key))), "text")
    notes.account(part, {"type", key}, "content part", path)
    return text(need(part, key, path), join(path, key))


def _other_part(kind: str, path: str) -> RowError:
    return RowError(
        code="BC011",
        field=path,
        problem=f"a part of the type{keyword(kind)} where text is needed",
        fix="Leave out rows with other parts than text",
    )
