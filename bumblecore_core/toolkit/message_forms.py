"""The form in which a chat template reads messages: found out by rendering a few probe conversations.

Templates read the same message in different forms: reasoning under one of three names, the arguments of a call as an
object or as JSON text, an empty content as "" or as null, texts as lists of parts, call ids of a certain shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TypeAlias

from bumblecore_core.toolkit.thinking import THINK, ThinkTags
from bumblecore_core.values import Message

Render: TypeAlias = Callable[[list[Message], Any, bool], "str | None"]
"""(messages, tools, generation prompt) to text; None where the template raises."""
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_QUESTION, _ANSWER, _REASONING, _RESULT = "bumblequestion", "bumbleanswer", "bumblereason", "bumbleresult"
_FUNCTION, _KEY, _VALUE = "bumblefunction", "bumblekey", "bumblevalue"
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_PROBE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _FUNCTION,
            "description": "A probe.",
            "parameters": {
                "type": "object",
                "properties": {_KEY: {"type": "string", "description": "A text."}},
                "required": [_KEY],
            },
        },
    }
]


@dataclass(frozen=True, kw_only=True)
class MessageForm:
    """`reasoning`: the key that the template reads reasoning from, or None; `tags`: what it writes around it;
    `parts`: texts are lists of parts; `arguments`: of calls; `empty`: the content of a message that only calls
    (`absent`: no such key); `ids`: of calls, as the row gives them, of nine letters and digits (Mistral), or
    `functions.NAME:INDEX` (Kimi K2); `names`: tool results carry the name of their function."""

    reasoning: str | None = None
    tags: ThinkTags = THINK
    parts: bool = False
    arguments: Literal["object", "text"] = "object"
    empty: Literal["", "absent"] | None = ""
    ids: Literal["given", "nine", "function"] = "given"
    names: bool = False


def find_form(render: Render) -> MessageForm:
    """The first form in which the template renders all parts of the probes; for what it never renders, the default."""
    parts = _wants_parts(render)
    reasoning, tags = _reasoning(render, parts)
    choices = product(("given", "nine", "function"), ("object", "text"), ("", None, "absent"), (False, True))
    forms = [
        MessageForm(reasoning=reasoning, tags=tags, parts=parts, ids=i, arguments=a, empty=e, names=n)  # type: ignore[arg-type]
        for i, a, e, n in choices
    ]
    for probe, wanted in (
        (_tool_loop(), (_FUNCTION, _KEY, _VALUE, _RESULT, _ANSWER)),
        (_tool_loop()[:2], (_FUNCTION, _KEY, _VALUE)),
    ):
        for form in forms:
            text = render(in_form(probe, form), _PROBE_TOOLS, False)
            if text is not None and _holds(text, wanted):
                return form
    return forms[0]


def in_form(messages: Sequence[Message], form: MessageForm) -> list[Message]:
    """The messages as the template reads them. Reasoning is expected under `reasoning_content`."""
    calls = {id(call): at for at, call in enumerate(_calls(messages))}
    ids = _call_ids(messages, form)
    result_of = _calls_of_results(messages)
    formed = []
    for index, message in enumerate(messages):
        new = dict(message)
        if form.parts and isinstance(new.get("content"), str):
            new["content"] = [{"type": "text", "text": new["content"]}]
        if "reasoning_content" in new and form.reasoning not in (None, "reasoning_content"):
            new[form.reasoning] = new.pop("reasoning_content")
        if message.get("tool_calls"):
            new["tool_calls"] = [_call_in_form(call, form, ids[calls[id(call)]]) for call in message["tool_calls"]]
            if not message.get("content"):
                new.pop("content", None)
                if form.empty != "absent":
                    new["content"] = form.empty
        if (call := result_of.get(index)) is not None:
            if ids[calls[id(call)]] is not None:
                new["tool_call_id"] = ids[calls[id(call)]]
            if form.names:
                new.setdefault("name", call["function"]["name"])
        formed.append(new)
    return formed


def _call_in_form(call: Mapping[str, Any], form: MessageForm, identity: str | None) -> dict[str, Any]:
    function = dict(call["function"])
    if form.arguments == "text" and not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": function, **({"id": identity} if identity is not None else {})}


def _calls(messages: Iterable[Message]) -> list[Mapping[str, Any]]:
    return [call for message in messages for call in message.get("tool_calls") or ()]


def _call_ids(messages: Sequence[Message], form: MessageForm) -> list[str | None]:
    """The id of each call of the conversation, in order."""
    calls = _calls(messages)
    given = [call.get("id") for call in calls]
    if form.ids == "function":
        return [f"functions.{call['function']['name']}:{at}" for at, call in enumerate(calls)]
    fits = all(isinstance(one, str) and _SHORT_ID.fullmatch(one) for one in given) and len(set(given)) == len(given)
    if form.ids == "nine" and not fits:
        return [f"call{at:05d}" for at in range(len(calls))]
    return given


def _calls_of_results(messages: Sequence[Message]) -> dict[int, Mapping[str, Any]]:
    """Index of each tool message → the call that it answers: the one with its id, or for a result without an id the
    next that no result names. A result with an id that no call has answers none."""
    found: dict[int, Mapping[str, Any]] = {}
    open_calls: list[Mapping[str, Any]] = []
    named = {message["tool_call_id"] for message in messages if message.get("tool_call_id")}
    for index, message in enumerate(messages):
        open_calls = list(message.get("tool_calls") or open_calls)
        if message.get("role") != "tool":
            continue
        identity = message.get("tool_call_id")
        fitting = (
            call for call in open_calls if (call.get("id") == identity if identity else call.get("id") not in named)
        )
        if (call := next(fitting, None)) is not None:
            open_calls = [other for other in open_calls if other is not call]
            found[index] = call
    return found


def _wants_parts(render: Render) -> bool:
    text = render([{"role": "user", "content": _QUESTION}], None, False)
    if text is not None and _QUESTION in text:
        return False
    text = render([{"role": "user", "content": [{"type": "text", "text": _QUESTION}]}], None, False)
    return text is not None and _QUESTION in text


def _reasoning(render: Render, parts: bool) -> tuple[str | None, ThinkTags]:
    plain = MessageForm(parts=parts)
    user, reply = in_form([{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}], plain)
    calling = {**reply, "content": "", "tool_calls": _tool_loop()[1]["tool_calls"]}
    for message, tools, name in (
        *((reply, None, name) for name in REASONING_NAMES),
        *((calling, _PROBE_TOOLS, name) for name in REASONING_NAMES),  # some render it only before a call
    ):
        text = render([user, {**message, name: _REASONING}], tools, False)
        if text is None or _REASONING not in text:
            continue
        start = text.index(_REASONING)
        before, after = text[:start], text[start + len(_REASONING) :]
        asked = render([user], tools, True) or ""
        opening = before[_common_length(asked, before) :]
        if not opening.strip():  # the generation prompt has it
            opening = (re.search(r"[<\[◁][^<\[◁\n]*[>\]▷]\w*\s*\Z", before) or [THINK.opening])[0]
        if message is calling:
            return name, ThinkTags(opening, (re.match(r"\s*[<\[◁][^<\[◁\n]*?[>\]▷]", after) or [THINK.closing])[0])
        if _ANSWER not in after or _ANSWER in before:
            return name, THINK
        return name, ThinkTags(opening, after[: after.index(_ANSWER)])
    return None, THINK


def _common_length(one: str, other: str) -> int:
    """Characters of the longest common beginning of two texts."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _tool_loop() -> list[Message]:
    call = {"type": "function", "function": {"name": _FUNCTION, "arguments": {_KEY: _VALUE}}}
    return [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": _RESULT},
        {"role": "assistant", "content": _ANSWER},
    ]


def _holds(text: str, wanted: Sequence[str]) -> bool:
    """Whether a probe's parts are all there, and its arguments neither as Python writes an object nor as JSON inside a
    JSON text. The tool's definition holds the names too, so they must occur once more than that needs."""
    spoiled = (f"'{_KEY}': '{_VALUE}'", f'\\"{_KEY}')
    conversation = text.rpartition(_QUESTION)[2]
    return all(part in conversation for part in wanted) and not any(part in text for part in spoiled)
