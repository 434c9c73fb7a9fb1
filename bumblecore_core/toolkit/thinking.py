"""Reasoning before a reply: separating it from the content, and where the untrained prompt of such a turn ends.

Templates disagree: some open the think tag in the generation prompt (DeepSeek-R1, Qwen3-Thinking, Nemotron), some add
an empty think block to a turn without reasoning (Qwen3, GLM-4.5), some drop the reasoning of every turn that they
render (DeepSeek-R1). Whatever they do, a trained turn is split as it is served: the prompt is the generation prompt, an
empty think block belongs to the prompt (that is how a model is asked not to think), and the rest is trained.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_INLINE = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*(.*)", re.DOTALL)


class ThinkTags(NamedTuple):
    """What a template writes before and after reasoning, with the white space."""

    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"


THINK = ThinkTags()
KNOWN_TAGS = (
    THINK,
    ThinkTags("<thinking>", "</thinking>"),
    ThinkTags("<reasoning>", "</reasoning>"),
    ThinkTags("<seed:think>", "</seed:think>"),
    ThinkTags("[THINK]", "[/THINK]"),
    ThinkTags("◁think▷", "◁/think▷"),
    ThinkTags("<|channel>thought\n", "<channel|>"),
    ThinkTags("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Of templates whose tags a probe does not show, since they render no reasoning in a finished turn."""


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


def served(asked: str, rendered: str, reasoning: str, tags: ThinkTags, last_text: str) -> Served | None:
    """Splits a rendered turn. `asked`: the messages before it with the generation prompt; `rendered`: the messages up
    to and with it; `last_text`: the content of the message before it. None where the rendering is no continuation of
    what was asked.

    Some templates write earlier parts of the conversation otherwise when a user is last (Mistral puts the system text
    and the tools there); then what follows `last_text` must continue.
    """
    if (turn := _continued(asked, rendered, reasoning, tags)) is not None:
        return turn
    last_text = last_text.strip()
    cut = asked.rfind(last_text) + len(last_text) if last_text and last_text in asked else 0
    at = rendered.rfind(last_text) if cut else -1
    while at >= 0:
        turn = _continued(asked[cut:], rendered[at + len(last_text) :], reasoning, tags)
        if turn is not None:
            return Served(asked[:cut] + turn.prompt, turn.reply)
        at = rendered.rfind(last_text, 0, at + len(last_text) - 1)
    return None


def without_empty_block(reply: str, tags: ThinkTags, *, opened: bool = False) -> str:
    """`reply` without an empty think block at its start; `opened`: the prompt has the opening tag."""
    match = _empty_block(tags, opened).match(reply)
    return reply if match is None else reply[match.end() :]


def _continued(asked: str, rendered: str, reasoning: str, tags: ThinkTags) -> Served | None:
    if rendered.startswith(asked):
        reply = rendered[len(asked) :]
        is_open = any(asked.rstrip().endswith(pair.opening.strip()) for pair in (tags, *KNOWN_TAGS))
        answer = reply if reasoning else without_empty_block(reply, tags, opened=is_open)
        return Served(asked + reply[: len(reply) - len(answer)], answer)
    for pair in (tags, *KNOWN_TAGS):
        opening, closing = re.escape(pair.opening.strip()), re.escape(pair.closing.strip())
        opened = re.search(rf"{opening}\s*\Z", asked)
        if opened and rendered.startswith(before := asked[: opened.start()]):
            return _reopened(asked, before, rendered[len(before) :], reasoning, pair)
        closed = re.search(rf"(?:{opening}\s*)?{closing}\s*\Z", asked)
        if closed and rendered.startswith(before := asked[: closed.start()]):
            reply = rendered[len(before) :]
            if reasoning:  # a model that is asked not to think cannot write it: nothing of it is in the reply
                return Served(asked, "" if re.match(rf"\s*{opening}", reply) else reply)
            match = re.match(rf"\s*(?:{opening}\s*)?{_closing(pair)}", reply)
            return Served(asked, reply[match.end() :] if match else reply)
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


@lru_cache(maxsize=256)
def _empty_block(tags: ThinkTags, opened: bool) -> re.Pattern[str]:
    """The pattern of an empty think block in one of the known forms."""
    blocks = []
    for pair in (tags, *KNOWN_TAGS):
        opening, end = re.escape(pair.opening.strip()), _closing(pair)
        blocks.append(end if opened else rf"{opening}\s*{end}")
    return re.compile(rf"\s*(?:{'|'.join(blocks)})")


def _closing(tags: ThinkTags) -> str:
    """The pattern of a closing tag with the white space that the template writes after it."""
    tail = re.escape(tags.closing[len(tags.closing.rstrip()) :])
    return f"{re.escape(tags.closing.strip())}(?:{tail})?"
