"""What a chat template leaves out: texts of a conversation that do not occur in its rendering."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bumblecore_core.errors import RowError
from bumblecore_core.toolkit.thinking import separated
from bumblecore_core.values import Message

TAKEN = "\0"


class Part(NamedTuple):
    """A text of a message, with its path below the message. `words`: looked for as words of their own first."""

    path: str
    text: str
    words: bool = False


def require_whole(messages: Sequence[Message], trained: Iterable[int], reply: str) -> None:
    """Raises `RowError` BC079 where a part of the messages with the indices `trained` is not in their trained text."""
    parts = [
        part._replace(path=f"messages[{index}].{part.path}") for index in trained for part in _parts(messages[index])
    ]
    if (lost := first_lost(parts, reply)) is None:
        return
    fix = "set model.chat_template to a template that renders it, or remove it from the row"
    if lost.endswith("reasoning_content"):
        fix = "set stage.reasoning: drop to train without it, or model.chat_template_kwargs (such as "
        fix += "enable_thinking: true) or model.chat_template so that it is rendered"
    problem = "the chat template does not render this part of a trained turn"
    raise RowError(code="BC079", field=lost, problem=problem, fix=fix)


def first_lost(parts: Sequence[Part], text: str) -> str | None:
    """The path of the first of `parts` that `text` does not hold. Each part must have a stretch of its own, so that one
    which occurs inside another counts only where it occurs once more; so the longest ones are looked for first."""
    lost: set[int] = set()
    for index in sorted(range(len(parts)), key=lambda index: len(parts[index].text), reverse=True):
        found, text = _taken(parts[index], text)
        if not found:
            lost.add(index)
    return parts[min(lost)].path if lost else None


def context_warnings(messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> tuple[str, ...]:
    """A warning for each kind of context that `text` does not hold."""
    kinds = lost_in_context(messages, tools, text)
    return tuple(f"BC080 the chat template does not render {kind}" for kind in kinds)


def lost_in_context(messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> Iterator[str]:
    """What kinds of context `text` does not hold: a tool definition, a parameter of a tool, a system, user or assistant
    text, a tool call, a tool result. Reasoning is no context: many templates drop that of earlier turns."""
    functions = [tool.get("function", tool) for tool in tools or ()]
    named = (str(function.get(key) or "") for function in functions for key in ("name", "description"))
    if not all(_occurs(part, text) for part in named):
        yield "a tool definition"
    elif not all(_occurs(part, text) for function in functions for part in _parameters(function.get("parameters"))):
        yield "a parameter of a tool"
    kinds = {
        "system": "a system text",
        "user": "a user text",
        "assistant": "an assistant text",
        "tool": "a tool result",
    }
    for role, kind in kinds.items():
        contents = (message.get("content") for message in messages if message["role"] == role)
        texts = (content for content in contents if isinstance(content, str))
        if not all(_occurs(separated(part)[1] if role == "assistant" else part, text) for part in texts):
            yield kind
    calls = (part for message in messages for part in _parts(message) if part.path.startswith("tool_calls"))
    if not all(_taken(part, text)[0] for part in calls):
        yield "a tool call"


def _parameters(schema: Any) -> Iterator[str]:
    """The names and descriptions of the parameters in a JSON schema, nested ones included."""
    if isinstance(schema, list):
        for item in schema:
            yield from _parameters(item)
    if not isinstance(schema, Mapping):
        return
    properties = schema.get("properties")
    for name, parameter in properties.items() if isinstance(properties, Mapping) else ():
        yield str(name)
        if isinstance(parameter, Mapping):
            yield str(parameter.get("description") or "")
        yield from _parameters(parameter)
    for key in ("items", "anyOf", "oneOf", "allOf"):
        yield from _parameters(schema.get(key))


def _parts(message: Message) -> Iterator[Part]:
    """Reasoning, content, and of each call the name, the keys and the values of its arguments."""
    content = message.get("content")
    inline, answer = separated(content) if isinstance(content, str) else ("", "")
    for name, text in (("reasoning_content", message.get("reasoning_content")), ("reasoning_content", inline)):
        if isinstance(text, str):
            yield Part(name, text)
    yield Part("content", answer)
    for index, call in enumerate(message.get("tool_calls") or ()):
        path, function = f"tool_calls[{index}]", call["function"]
        yield Part(path, function["name"], words=True)
        yield from _leaves(function.get("arguments"), f"{path}.arguments")


def _leaves(value: Any, path: str) -> Iterator[Part]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield Part(f"{path}.{key}", str(key), words=True)
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    elif isinstance(value, str):
        yield Part(path, value)
    elif value is not None:  # a number or a truth value
        yield Part(path, json.dumps(value), words=True)


def _taken(part: Part, text: str) -> tuple[bool, str]:
    """(whether `text` holds the part, `text` without it)."""
    for form in _forms(part.text):
        start = _word_start(form, text) if part.words else -1
        if start < 0:
            start = text.find(form)
        if start >= 0:
            return True, text[:start] + TAKEN + text[start + len(form) :]
    return not part.words and _squeezed(part.text) in _squeezed(text), text


def _word_start(form: str, text: str) -> int:
    """Where `text` has `form` between characters that belong to no word, or -1. JSON and Python spell truth values
    differently: `true` is also found as `True`."""
    flags = re.IGNORECASE if form in ("true", "false") else 0
    match = re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text, flags)
    return match.start() if match else -1


def _occurs(part: str, text: str) -> bool:
    """Whether a text is part of another, as it is or as JSON writes it; white space may differ."""
    return any(form in text for form in _forms(part)) or _squeezed(part) in _squeezed(text)


def _forms(part: str) -> Iterator[str]:
    part = part.strip()
    yield part
    for ascii in (False, True):
        if (escaped := json.dumps(part, ensure_ascii=ascii)[1:-1]) != part:
            yield escaped


def _squeezed(text: str) -> str:
    return "".join(text.split())
