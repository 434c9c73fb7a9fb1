"""What a row holds besides what is read: every key is read, harmless, or reported."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from bumblecore_core import RowError
from bumblecore_plugins.data_formats.fields import join
from bumblecore_plugins.data_formats.padding import looks_padded

HARMLESS = frozenset(
    "_id __index_level_0__ category chat_id conversation_id created created_at dataset dataset_name date domain "
    "extra_info finish_reason hash id idx index lang language length license max_tokens meta metadata model n "
    "num_tokens num_turns origin parallel_tool_calls prompt_id quality rating score score_chosen score_rejected "
    "scores source split stream subset tags task temperature timestamp token_count tokens tool_choice top_p topic "
    "turn turns type updated_at url uuid".split()
)
"""Keys of rows and messages that describe them or asked for them, and that no template reads."""
MEDIA = frozenset(
    f"{medium}{suffix}"
    for medium in ("image", "audio", "video")
    for suffix in ("", "s", "_url", "_urls", "_path", "_paths")
) | {"input_image", "input_audio", "input_video"}
"""Keys and types of parts that hold something else than text."""
_NAME = re.compile(r"[\w. -]{1,40}", re.ASCII)


class RowNotes:
    """The warnings of one row, each of them once, and whether Arrow may have padded it with nulls."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._warnings: dict[str, None] = {}

    @cached_property
    def padded(self) -> bool:
        """Whether the row's nulls can be padding."""
        return looks_padded(self._row)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings so far, in the order of the row."""
        return tuple(self._warnings)

    def unread(self, what: str, key: str, why: str = "is not read") -> None:
        """Warns that a key of `what` (row, message, …) is not read."""
        name = f"the {what} key '{key}'" if _NAME.fullmatch(key) else f"a {what} key that is not a word"
        self._warnings[f"BC083 {name} {why}"] = None

    def account(self, item: Mapping[str, Any], known: Collection[str], what: str, path: str = "") -> None:
        """Warns of each key of `item` that has content and is neither `known` nor harmless. Raises `RowError` BC084 for
        images, audio and video."""
        for key in [key for key in item if key not in known]:
            if key in HARMLESS or not has_content(item[key]):
                continue
            if key in MEDIA:
                raise media_error(join(path, key))
            self.unread(what, str(key))


def has_content(value: Any) -> bool:
    """Whether a value says anything: not null, an empty text, list or object, or one of nothing but these."""
    if isinstance(value, dict):
        return any(map(has_content, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_content, value))
    return value is not None and value != ""


def media_error(path: str) -> RowError:
    """BC084 at the key or the type of part that holds them."""
    return RowError(
        code="BC084",
        field=path,
        problem="images, audio and video are not supported",
        fix="Remove the key or leave the row out: only text is trained on",
    )
