"""Special tokens that are written out in a row's texts, such as `<|im_end|>` in a question about chat templates.

`control`: they are read as the control tokens that they spell, which is what happens when a model is served by
transformers or vLLM. `text`: they are tokenized as plain text. `refuse`: the row is an error. Until the text is
tokenized, one that is plain text is replaced by a character of Unicode's private use, which no template changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from bumblecore_core.errors import RowError
from bumblecore_core.toolkit.thinking import KNOWN_TAGS
from bumblecore_core.values import ChatSample, Message

SpecialTokens: TypeAlias = Literal["control", "text", "refuse"]
FIRST_PRIVATE = 0x10F000
READ_AS_CONTROL = "BC086 special tokens in a text are read as control tokens (data.special_tokens)"
READ_AS_TEXT = "BC086 special tokens in a text are tokenized as plain text (data.special_tokens)"
ENDS_WITH_END = "BC087 a reply ends with the end-of-turn token, which the template writes: trained once"
THINK_TAGS = frozenset(tag.strip() for pair in KNOWN_TAGS for tag in pair)
"""Tags of reasoning are part of an assistant's text, also where a tokenizer has them as special tokens."""


class SpecialTexts:
    """`specials`: all special tokens' texts; `ends`: those that end an assistant's turn. Looked at are the messages,
    tools and template arguments of a row, their keys too."""

    def __init__(self, specials: Sequence[str], ends: Sequence[str], mode: SpecialTokens) -> None:
        self.mode, self.ends = mode, tuple(ends)
        texts = sorted(
            {text for text in specials if text and text not in THINK_TAGS}, key=lambda text: (-len(text), text)
        )
        self._pattern = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        self._private = {text: chr(FIRST_PRIVATE + at) for at, text in enumerate(texts)}
        # A template may write them as JSON does in ASCII: `\\udbfc\\udc00`.
        forms = {text: (character, json.dumps(character)[1:-1]) for text, character in self._private.items()}
        self._text_of = {form: text for text, both in forms.items() for form in both}
        self._placeholder = re.compile("|".join(map(re.escape, self._text_of)) or r"(?!)")

    def __call__(self, sample: ChatSample) -> ChatSample | RowError:
        """The sample as it is rendered, its warnings added to; or BC086 where it is refused."""
        messages = tuple(self._without_end(message) for message in sample.messages)
        warnings = (ENDS_WITH_END,) if any(a is not b for a, b in zip(messages, sample.messages, strict=True)) else ()
        parts: dict[str, Any] = {f"messages[{index}]": message for index, message in enumerate(messages)}
        parts |= {"tools": sample.tools, "chat_template_kwargs": sample.template_kwargs}
        if self.mode == "text":
            taken = next((field for field, part in parts.items() if _any_text(part, self._placeholder.search)), None)
            if taken is not None:
                problem = "a text holds characters of Unicode's last private plane, which stand for special tokens"
                return _refused(taken, problem, "remove them, or set data.special_tokens to control or refuse")
        found = next((field for field, part in parts.items() if _any_text(part, self._pattern.search)), None)
        if found is None:
            return replace(sample, messages=messages, warnings=warnings) if warnings else sample
        if self.mode == "refuse":
            return _refused(found, "a text holds a special token", "remove it, or set data.special_tokens: text")
        if self.mode == "control":
            return replace(sample, messages=messages, warnings=(*warnings, READ_AS_CONTROL))
        return replace(
            sample,
            messages=tuple(_changed(message, self._to_private) for message in messages),
            tools=_changed(sample.tools, self._to_private),
            template_kwargs=_changed(sample.template_kwargs, self._to_private),
            warnings=(*warnings, READ_AS_TEXT),
        )

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """(piece, width) of a rendered text, in order. A piece of the width 0 stands there as it is; any other is a
        special token's text to be read as plain text, in place of that many characters."""
        if self.mode != "text" or not self._placeholder.search(text):
            return [(text, 0)]
        parts = re.split(f"({self._placeholder.pattern})", text)
        return [(self._text_of[part], len(part)) if part in self._text_of else (part, 0) for part in parts if part]

    def _to_private(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._private[match[0]], text)

    def _without_end(self, message: Message) -> Message:
        """An assistant's message whose content ends with the token that the template ends it with, without that."""
        content = message.get("content")
        if message.get("role") != "assistant" or not isinstance(content, str):
            return message
        text = content
        while end := next((end for end in self.ends if text.rstrip().endswith(end)), ""):
            text = text.rstrip().removesuffix(end)
        return message if text is content else {**message, "content": text}


def _refused(field: str, problem: str, fix: str) -> RowError:
    return RowError(code="BC086", field=field, problem=problem, fix=fix)


def _any_text(value: Any, test: Callable[[str], Any]) -> bool:
    if isinstance(value, str):
        return bool(test(value))
    if isinstance(value, dict):
        return any(map(test, value)) or any(_any_text(item, test) for item in value.values())
    return isinstance(value, list | tuple) and any(_any_text(item, test) for item in value)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _changed(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, change) for item in value)
    return value
