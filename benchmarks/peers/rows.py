"""Rows for a benchmark, from a file or made up by a seeded generator: conversations of one request and one reply, or
pairs of replies to one prompt."""

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

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}

Chat = list[dict[str, str]]
Pair = dict[str, Chat]
"""`prompt`, and the replies `chosen` and `rejected`."""


def read_chats(path: Path) -> list[Chat]:
    """Alpaca rows (JSON array, or a row a line) as conversations; rows without a reply are left out."""
    chats = []
    for row in _read(path):
        request = "\n".join(part for part in (row["instruction"], row.get("input") or "") if part)
        if request and row["output"]:
            chats.append(_chat(request, row["output"]))
    return chats


def read_pairs(path: Path) -> list[Pair]:
    """Preference rows in ShareGPT form (JSON array, or a row a line); pairs with an empty reply or two equal ones are
    left out. White space at a reply's ends is taken off: at its beginning it could share a token with the prompt."""
    pairs = []
    for row in _read(path):
        chosen, rejected = (row[side]["value"].strip() for side in ("chosen", "rejected"))
        if chosen and rejected and chosen != rejected:
            prompt = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
            pairs.append({"prompt": prompt, "chosen": _reply(chosen), "rejected": _reply(rejected)})
    return pairs


def make_chats(count: int, *, seed: int) -> list[Chat]:
    """Made-up conversations whose words and lengths are distributed like those of instruction data."""
    writer = _Writer(seed)
    return [_chat(writer.request(), writer.reply()) for _ in range(count)]


def make_pairs(count: int, *, seed: int) -> list[Pair]:
    """Made-up pairs of replies like those of `make_chats`, each reply with a length of its own."""
    writer = _Writer(seed)
    return [
        {"prompt": _request(writer.request()), "chosen": _reply(writer.reply()), "rejected": _reply(writer.reply())}
        for _ in range(count)
    ]


class _Writer:
    """Words by Zipf's law; replies have 10 to 400 of them, with a median of 90."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        self._words = sorted({"".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(6000)})
        rng.shuffle(self._words)
        self._frequencies = [1 / rank for rank in range(1, len(self._words) + 1)]

    def request(self) -> str:
        return self._text(self._rng.randint(6, 30))

    def reply(self) -> str:
        return self._text(min(400, max(10, round(self._rng.lognormvariate(4.5, 0.7)))))

    def _text(self, length: int) -> str:
        return " ".join(self._sentence(min(12, length - start)) for start in range(0, length, 12))

    def _sentence(self, length: int) -> str:
        return " ".join(self._rng.choices(self._words, self._frequencies, k=length)).capitalize() + "."


def _read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        array: list[dict[str, Any]] = json.loads(text)
        return array
    return [json.loads(line) for line in text.splitlines() if line]


def _chat(request: str, reply: str) -> Chat:
    return [*_request(request), *_reply(reply)]


def _request(text: str) -> Chat:
    return [{"role": "user", "content": text}]


def _reply(text: str) -> Chat:
    return [{"role": "assistant", "content": text}]
