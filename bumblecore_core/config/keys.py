"""Where a value lies in a config: a path of keys and list indices, and its dotted spelling."""

from __future__ import annotations

from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
"""`("data", "path", 0, "weight")`, written `data.path.0.weight` in messages and after `--set`."""

LONGEST_SHOWN = 60


def dotted(path: KeyPath) -> str:
    """The spelling that messages and `--set` use."""
    return ".".join(shown(str(part)) for part in path)


def shown(text: str) -> str:
    """`text` fit for a message: cut to 60 characters, on one line."""
    return printable(text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…")


def printable(text: str) -> str:
    """`text` on one line: control characters, line ends and lone surrogates as escapes. For paths: never cut."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
