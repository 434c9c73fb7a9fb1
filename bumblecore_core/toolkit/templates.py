"""A tokenizer's chat template: rendering, generation marks, and how it ends an assistant's turn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from bumblecore_core.errors import ModelError, RowError, one
from bumblecore_core.toolkit.limits import Exceeded, piece
from bumblecore_core.toolkit.tokenizers import over_limit, require_chat_template, special_tokens
from bumblecore_core.values import Message

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_REPLY = "bumblecore"  # the assistant's part of a probe conversation
_PROBE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _REPLY}]
_TODAY = re.compile(r"""strftime_now\s*\(\s*(?:format\s*=\s*)?(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""")
RESERVED = frozenset({"continue_final_message", "add_generation_prompt", "messages", "tools", "chat_template"})
LARGEST_TEXT = 32 << 20  # characters of one rendered conversation, which are tokenized at once


class ChatTemplate:
    """Renders with transformers' own Jinja environment, compiled once per template and process. `variables`: for every
    conversation (`model.chat_template_kwargs`); `date`: the day (YYYY-MM-DD) that a template prints as today's, so that
    a conversation has the same tokens whenever it is rendered.

    Raises `ModelError` BC022 (no chat template) or BC024 (its generation marks cannot be located). Every rendering
    raises `ModelError` BC092 where it takes too much time or memory, or gives too long a text; many in a row are faster
    inside one `limits.limited()`.
    """

    def __init__(self, tokenizer: Any, *, variables: Mapping[str, Any] | None = None, date: str | None = None) -> None:
        require_chat_template(tokenizer)
        self._tokenizer = tokenizer
        self._variables = {**tokenizer.special_tokens_map, **(variables or {})}
        self._date = None if date is None else datetime.fromisoformat(date)
        self._check_marks()

    def has_marks(self, tools: Any = None) -> bool:
        """Whether the template for such conversations says with `{% generation %}` what an assistant writes."""
        return _MARKS.search(self._source(tools)) is not None

    def render(
        self,
        messages: list[Message],
        tools: Any = None,
        *,
        prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text; `prompt` adds the generation prompt; `variables`: of this conversation, which
        override those of all. Raises `RowError` BC023."""
        return self._render(messages, tools, variables, add_generation_prompt=prompt)[0]

    def render_marks(
        self, messages: list[Message], tools: Any = None, variables: Mapping[str, Any] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters [start, end) of each part between generation marks, adjacent ones as one. Raises
        `RowError` BC023."""
        text, marks = self._render(messages, tools, variables, return_assistant_tokens_mask=True)
        spans: list[tuple[int, int]] = []
        for start, end in marks:
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return text, spans

    def end_of_turn_ids(self) -> list[int]:
        """Ids of the special tokens that end generation: eos, and the one that closes an assistant's turn here."""
        specials = special_tokens(self._tokenizer)
        ids = [] if self._tokenizer.eos_token_id is None else [self._tokenizer.eos_token_id]
        text = next((text for text, _ in self._probed() if _REPLY in text), None)
        if text is None:
            return ids
        after = text.rpartition(_REPLY)[2].lstrip()
        closing = max((token for token in specials if after.startswith(token)), key=len, default=None)
        return ids if closing is None else sorted({*ids, specials[closing]})

    def _render(
        self, messages: list[Message], tools: Any, variables: Mapping[str, Any] | None = None, **how: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self._dated(self._source(tools))
        given = {**self._variables, **(variables or {})}
        if reserved := RESERVED.intersection(given):
            name = min(reserved)
            problem = f"chat_template_kwargs may not set '{name}'"
            raise RowError(code="BC023", field="chat_template_kwargs", problem=problem, fix="remove it")
        try:
            with piece():
                texts, marks = render_jinja_template([messages], tools, chat_template=source, **how, **given)
        except Exceeded as error:
            raise over_limit(f"the chat template took {error} for one conversation") from None
        except Exception as error:  # a template is someone else's program: anything may come out of it
            said = _without_row(" ".join(str(error).split()), messages)[:200] or type(error).__name__
            raise RowError(
                code="BC023",
                field="messages",
                problem=f"the chat template raised: {said}",
                fix="correct the row, or set model.chat_template to a template that takes such conversations",
            ) from error
        if len(texts[0]) > LARGEST_TEXT:
            raise over_limit(f"the chat template gives {len(texts[0]):,} characters for one conversation")
        return texts[0], marks[0] if marks else []

    def _dated(self, source: str) -> str:
        """The template with today's date as a literal: transformers lets no other function be passed in."""
        date = self._date
        if date is None:
            return source
        return _TODAY.sub(lambda call: repr(date.strftime(call["format"])), source)

    def _source(self, tools: Any) -> str:
        try:
            return str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:  # several named templates and no default
            raise one(
                ModelError,
                "BC022",
                "the tokenizer has several chat templates and none named 'default'",
                "set model.chat_template to a .jinja file",
                field="model.chat_template",
            ) from error

    def _probed(self, *, marks: bool = False) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """A probe conversation rendered, with its texts as they are and as lists of parts, as far as the template takes
        it; with `marks` also the characters between generation marks."""
        for messages in (_PROBE, [_as_parts(message) for message in _PROBE]):
            with suppress(RowError):
                yield self.render_marks(messages) if marks else (self.render(messages), [])

    def _check_marks(self) -> None:
        """Jinja misplaces marks inside a macro or a `set` block, which shows in a reply that is not between them."""
        if not self.has_marks():
            return
        probed = [(text, spans) for text, spans in self._probed(marks=True) if spans and _REPLY in text]
        if probed and not any(_REPLY in text[start:end] for text, spans in probed for start, end in spans):
            raise one(
                ModelError,
                "BC024",
                "the template's {% generation %} marks do not enclose the assistant's reply",
                "put them around the reply in the template's message loop, outside macros and set blocks",
                field="model.chat_template",
            )


def prints_date(tokenizer: Any) -> bool:
    """Whether one of the tokenizer's chat templates prints today's date."""
    templates = tokenizer.chat_template
    sources = templates.values() if isinstance(templates, dict) else [templates or ""]
    return any("strftime_now" in source for source in sources)


def _without_row(said: str, messages: list[Message]) -> str:
    """A template's message without what it quotes of the row."""
    texts = {" ".join(message["content"].split()) for message in messages if isinstance(message.get("content"), str)}
    for text in sorted(texts, key=len, reverse=True):
        if len(text) > 3:  # shorter ones tell nothing, and occur in any message
            said = said.replace(text, "…")
    return said


def _as_parts(message: Message) -> Message:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
