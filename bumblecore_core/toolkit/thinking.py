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

from bumblecore_core.errors import RowError
from bumblecore_core.values import Message

_CLOSING_LINE = re.compile(r"\n\s*</think>|</think>\s*(\n|\Z)")
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
    """(reasoning, answer) of a content that begins with `<think>…</think>`, or has the closing tag alone, at a line's
    start or end, because the prompt had the opening one; ("", content) for any other."""
    opened = content.lstrip().startswith("<think>")
    if "</think>" not in content or (not opened and ("<think>" in content or not _CLOSING_LINE.search(content))):
        return "", content
    match = _INLINE.fullmatch(content)
    assert match is not None
    return match[1].strip(), match[2]


def with_reasoning_apart(message: Message, index: int, *, drop: bool, reads: bool) -> Message:
    """An assistant's message with its reasoning under `reasoning_content`, or without it (`drop`). Reasoning inside the
    content stays there where the template `reads` none. Raises `RowError` BC011 where the message `index` has two."""
    message = dict(message)
    content, reasoning = message.get("content"), str(message.pop("reasoning_content", "")).strip()
    inline, answer = separated(content) if isinstance(content, str) else ("", content)
    if drop:
        return {**message, "content": answer} if inline else message
    if inline and reasoning not in ("", inline):
        problem, field = "it differs from the reasoning in the content", f"messages[{index}].reasoning_content"
        raise RowError(code="BC011", field=field, problem=problem, fix="keep one of the two")
    if inline and reads:
        return {**message, "content": answer, "reasoning_content": inline}
    return {**message, "reasoning_content": reasoning} if reasoning and not inline else message


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
    if reasoning and answer.lstrip().startswith(reasoning):  # the turn shows it, but not the tag that the prompt has
        return Served(asked, answer)
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
