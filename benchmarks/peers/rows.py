"""Rows for a benchmark: conversations of one request and one reply, from a file or made up by a seeded generator."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SYLLABLES = (
    "ba co di fe gu ha jo ki le mu na po qui ra se ti vo wa xe yu za bri cla dro fle gri pla sto tru sha".split()
)
MADE_ROWS_OF_TEXT = 1000
"""The tokenizer of made-up rows is trained on this many, however few are trained on."""

Chat = list[dict[str, str]]


def read_chats(path: Path) -> list[Chat]:
    """Alpaca rows (JSON array, or a row a line) as conversations; rows without a reply are left out."""
    text = path.read_text(encoding="utf-8")
    found: list[dict[str, Any]] = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    )
    chats = []
    for row in found:
        request = "\n".join(part for part in (row["instruction"], row.get("input") or "") if part)
        if request and row["output"]:
            chats.append(_chat(request, row["output"]))
    return chats


def make_chats(count: int, *, seed: int) -> list[Chat]:
    """Made-up conversations whose words and lengths are distributed like those of instruction data: Zipf's law, and
    replies of 10 to 400 words with a median of 90."""
    rng = random.Random(seed)
    words = sorted({"".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(6000)})
    rng.shuffle(words)
    frequencies = [1 / rank for rank in range(1, len(words) + 1)]

    def sentence(length: int) -> str:
        return " ".join(rng.choices(words, frequencies, k=length)).capitalize() + "."

    def text(length: int) -> str:
        return " ".join(sentence(min(12, length - start)) for start in range(0, length, 12))

    def reply_length() -> int:
        return min(400, max(10, round(rng.lognormvariate(4.5, 0.7))))

    return [_chat(text(rng.randint(6, 30)), text(reply_length())) for _ in range(count)]


def _chat(request: str, reply: str) -> Chat:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
