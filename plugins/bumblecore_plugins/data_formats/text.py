"""Plain text in one field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bumblecore_core import TextSample
from bumblecore_plugins.data_formats.fields import need, text
from bumblecore_plugins.data_formats.options import TextOptions


class TextFormat:
    """`{"text": "…"}` → `TextSample`."""

    def __init__(self, options: TextOptions) -> None:
        self.field = options.field

    def convert(self, *, row: Mapping[str, Any]) -> TextSample:
        """The row's text, unchanged. Raises `RowError` BC007, BC011."""
        return TextSample(text=text(need(row, self.field), self.field))
