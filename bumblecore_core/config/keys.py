"""Where a value lies in a config: a path of keys and list indices, and its dotted spelling."""

from __future__ import annotations

from typing import TypeAlias

from bumblecore_core.errors import printable

KeyPath: TypeAlias = tuple[str | int, ...]
"""`("data", "path", 0, "weight")`, written `data.path.0.weight` in messages and after `--set`."""

LONGEST_SHOWN = 60


def dotted(path: KeyPath) -> str:
    """The spelling that messages and `--set` use."""
    return ".".join(shown(str(part)) for part in path)


def shown(text: str) -> str:
    """`text` fit for a message: cut to 60 characters, on one line."""
    return printable(text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…")
