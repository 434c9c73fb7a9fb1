"""Reasoning before a reply: separating it from the content, and where the untrained prompt of such a turn ends.

Templates disagree: some open the think tag in the generation prompt (DeepSeek-R1, Qwen3-Thinking, Nemotron), some add
an empty think block to a turn without reasoning (Qwen3, GLM-4.5), some drop the reasoning of every turn that they
render (DeepSeek-R1). Whatever they do, a trained turn is split as it is served: the prompt is the generation prompt, an empty
think block belongs to the prompt (that is how a model is asked not to think), and the rest is trained.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_INLINE = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*(.*)", re.DOTALL)


class ThinkTags(NamedTuple):
    """What a template writes before and after reasoning, with the white space."""

    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"


THINK = ThinkTags()


class Served(NamedTuple):
    """A turn as it is served: `prompt` is given to the model, `reply` is what it writes."""

    prompt: str
    reply: str


def separated(content: str) -> tuple[str, str]:
    """(reasoning, answer) of a content that begins with `<think>…</think>`, or has the closing tag alone because the
    prompt had the opening one; ("", content) for any other."""
    if "</think>" not in content or ("<think>" in content and not content.lstrip().startswith("<think>")):
        return "", content
    match = _INLINE.fullmatch(content)
    assert match is not None
    return match[1].strip(), match[2]


def served(asked: str, rendered: str, reasoning: str, tags: ThinkTags) -> Served | None:
    """Splits a rendered turn. `asked`: the messages before it with the generation prompt; `rendered`: the messages up
    to and with it. None where the rendering is no continuation of what was asked."""
    opening, closing = re.escape(tags.opening.strip()), re.escape(tags.closing.strip())
    tail = re.escape(tags.closing[len(tags.closing.rstrip()) :])
    end = f"{closing}(?:{tail})?"
    opened = re.search(rf"{opening}\s*\Z", asked)
    if rendered.startswith(asked):
        reply = rendered[len(asked) :]
        empty = re.match(rf"\s*{end}" if opened else rf"\s*{opening}\s*{end}", reply)
        if empty and not reasoning:
            return Served(asked + empty[0], reply[empty.end() :])
        return Served(asked, reply)
    if opened and rendered.startswith(before := asked[: opened.start()]):
        return _reopened(asked, before, rendered[len(before) :], reasoning, tags)
    closed = re.search(rf"(?:{opening}\s*)?{closing}\s*\Z", asked)
    if closed and rendered.startswith(before := asked[: closed.start()]):
        reply = rendered[len(before) :]
        empty = re.match(rf"\s*(?:{opening}\s*)?{end}", reply)
        if not re.match(rf"\s*{opening}", reply) or empty:
            return Served(asked, reply[empty.end() :] if empty else reply)
    return None


def _reopened(asked: str, before: str, rest: str, reasoning: str, tags: ThinkTags) -> Served:
    """The generation prompt opens the think tag, and the rendering of the turn (`rest`, after `before`) does not."""
    opening, closing = re.escape(tags.opening.strip()), re.escape(tags.closing.strip())
    close = tags.closing if asked[-1:].isspace() else tags.closing.strip()
    block = re.match(rf"\s*(?P<opening>{opening}\s*)?(?P<closing>{closing}\s*)?", rest)
    assert block is not None
    answer = rest[block.end() :]
    if block["opening"] and not block["closing"]:  # only the white space after the tag differs
        return Served(asked, answer)
    if reasoning:
        return Served(asked, reasoning + close + answer)
    if block["closing"]:
        return Served(before + block[0], answer)
    return Served(asked + close, answer)
