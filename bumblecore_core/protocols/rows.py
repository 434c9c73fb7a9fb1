"""What reads a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from bumblecore_core.values import Sample

Row: TypeAlias = Mapping[str, Any]
"""One parsed row of a data file."""


class DataFormat(Protocol):
    """Converts rows of one schema."""

    def convert(self, *, row: Row) -> Sample:
        """The sample of `row`. Raises `RowError` with the path of the offending field.

        A format whose rows can give several kinds of sample takes a second keyword, `reads: SampleKind | None = None`:
        the kind that the stage reads. It is passed only where `convert` names it.
        """
        ...
