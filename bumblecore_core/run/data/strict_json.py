"""JSON as data files must hold it: no duplicate keys, no NaN or Infinity, no text that UTF-8 cannot carry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# What a raw JSON text must contain for one of its strings to hold a lone surrogate or a NUL. Proper pairs match too:
# the parsed strings decide.
_SUSPICIOUS = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_BAD_CHARACTER = re.compile("[\ud800-\udfff\0]")
_SPACE = re.compile(r"[ \t\r\n]*")


class Oddity(Exception):
    """Valid JSON that a row must not hold: an error's `code`, the `field` it is in, and the `problem` in words."""

    def __init__(self, code: str, field: str, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.code, self.field, self.problem, self.fix = code, field, problem, fix


class StrictDecoder:
    """Decodes one JSON value at a time. Holds state while it decodes, so one for each file."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )
        self._duplicate: str | None = None
        self._constant_seen = False

    def decode(self, text: str, start: int) -> tuple[Any, int]:
        """The value at `start` (white space skipped) and the index after it.

        Raises `ValueError` (mostly a `JSONDecodeError`) where it is malformed, `Oddity` where a row must not hold it.
        """
        self._duplicate, self._constant_seen = None, False
        start = skip_space(text, start)
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise json.JSONDecodeError("Nested too deeply", text, start) from None
        if self._duplicate is not None:
            fix = "Keep one of the two: which value was meant cannot be told."
            raise Oddity("BC005", self._duplicate, "the key appears twice in one object", fix)
        if self._constant_seen:
            where = next(path for path, leaf in leaves(value) if isinstance(leaf, float) and not _finite(leaf))
            raise Oddity(
                "BC005",
                where,
                "NaN, Infinity and numbers beyond 1.8e308 are not JSON",
                "Write null, or leave the row out.",
            )
        if _SUSPICIOUS.search(text, start, end):
            refuse_bad_text(value)
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs) and self._duplicate is None:
            seen: set[str] = set()
            self._duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return result

    def _float(self, number: str) -> float:
        value = float(number)
        self._constant_seen |= not _finite(value)
        return value

    def _constant(self, name: str) -> float:
        self._constant_seen = True
        return float(name)


def skip_space(text: str, start: int) -> int:
    """The index of the first character at or after `start` that is not JSON white space."""
    match = _SPACE.match(text, start)
    return match.end() if match else start


def refuse_bad_text(value: Any) -> None:
    """Raises `Oddity` BC020 for the first string below `value` with a lone surrogate or a NUL."""
    for path, leaf in leaves(value):
        bad = _BAD_CHARACTER.search(leaf) if isinstance(leaf, str) else None
        if bad:
            what = "a NUL" if bad.group() == "\0" else "a lone surrogate"
            fix = "Remove the character: a tokenizer cannot read it."
            raise Oddity("BC020", path, f"{what} at character offset {bad.start()} of the text", fix)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path such as `messages[2].content`, leaf) of each key and each value that is neither list nor object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path} (a key)".strip(), key
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def _finite(number: float) -> bool:
    return number - number == 0.0
