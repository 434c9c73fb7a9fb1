"""Examples as text, with the spans that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def marked(tokenizer: Any, ids: Sequence[int], spans: np.ndarray, *, start: int = 0) -> list[tuple[str, bool]]:
    """(text, trained) segments of the tokens from `start` on. `spans`: trained tokens as [start, end), flat or (S, 2).
    Text is decoded as it reads after the tokens before it."""
    segments: list[tuple[str, bool]] = []
    at = start
    for begin, end in np.asarray(spans).reshape(-1, 2).tolist():
        begin = max(begin, at)
        segments += [(_text(tokenizer, ids, at, begin), False), (_text(tokenizer, ids, begin, end), True)]
        at = max(at, end)
    segments.append((_text(tokenizer, ids, at, len(ids)), False))
    return [segment for segment in segments if segment[0]]


def _text(tokenizer: Any, ids: Sequence[int], start: int, end: int) -> str:
    """Tokens [start, end) as they read after the tokens before them (decoders strip a leading space at a start)."""
    if end <= start:
        return ""
    before, upto = (tokenizer.decode(part, skip_special_tokens=False) for part in (ids[:start], ids[:end]))
    if not upto.startswith(before):  # a character's bytes lie on both sides
        return str(tokenizer.decode(ids[start:end], skip_special_tokens=False))
    return str(upto[len(before) :])
