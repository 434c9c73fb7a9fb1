"""What a chat template leaves out: texts of a conversation that do not occur in its rendering."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bumblecore_core.errors import RowError
from bumblecore_core.toolkit.thinking import separated
from bumblecore_core.values import Message


def require_whole(messages: Sequence[Message], trained: Iterable[int], reply: str) -> None:
    """Raises `RowError` BC079 where a part of the messages with the indices `trained` is not in their trained text."""
    for index in trained:
        content = messages[index].get("content")
        reasoning, answer = separated(content) if isinstance(content, str) else ("", content)
        message = {**messages[index], "content": answer, **({"reasoning_content": reasoning} if reasoning else {})}
        if (lost := lost_in_reply(message, reply)) is None:
            continue
        fix = "set model.chat_template to a template that renders it, or remove it from the row"
        if lost == "reasoning_content":
            fix = "set stage.reasoning: drop to train without it, or model.chat_template_kwargs (such as "
            fix += "enable_thinking: true) or model.chat_template so that it is rendered"
        problem = "the chat template does not render this part of a trained turn"
        raise RowError(code="BC079", field=f"messages[{index}].{lost}", problem=problem, fix=fix)


def context_warnings(messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> tuple[str, ...]:
    """A warning for each kind of context that `text` does not hold."""
    kinds = lost_in_context(messages, tools, text)
    return tuple(f"BC080 the chat template does not render {kind}" for kind in kinds)


def lost_in_reply(message: Message, reply: str) -> str | None:
    """The path below `message` of the first part that `reply`, its trained text, does not hold: reasoning, content, a
    call's name or a value of its arguments. None where nothing is lost."""
    for name in ("reasoning_content", "content"):
        if not _occurs(message.get(name), reply):
            return name
    for index, call in enumerate(message.get("tool_calls") or ()):
        path, function = f"tool_calls[{index}]", call["function"]
        if not _occurs(function["name"], reply):
            return path
        if (lost := _lost_value(function.get("arguments"), reply)) is not None:
            return f"{path}.arguments{lost}"
    return _repeated_call(message.get("tool_calls") or (), reply)


def _repeated_call(calls: Sequence[Mapping[str, Any]], reply: str) -> str | None:
    """Equal calls must be there as often as the message has them."""
    names = [call["function"]["name"] for call in calls]
    for index, name in enumerate(names):
        if reply.count(name) < names[: index + 1].count(name):
            return f"tool_calls[{index}]"
    return None


def lost_in_context(messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> Iterator[str]:
    """What kinds of context `text` does not hold: "a tool definition", "a system text", "a user text", "a tool
    result"."""
    for tool in tools or ():
        function = tool.get("function", tool)
        if not _occurs(function.get("name"), text) or not _occurs(function.get("description"), text):
            yield "a tool definition"
            break
    kinds = {"system": "a system text", "user": "a user text", "tool": "a tool result"}
    for role, kind in kinds.items():
        if any(message["role"] == role and not _occurs(message.get("content"), text) for message in messages):
            yield kind


def _lost_value(value: Any, reply: str, path: str = "") -> str | None:
    if isinstance(value, Mapping):
        items = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        items = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, str):
        return None if _occurs(value, reply) else path
    else:  # numbers and truth values, as JSON or as Python writes them
        return None if value is None or json.dumps(value) in reply or str(value) in reply else path
    return next((lost for place, item in items if (lost := _lost_value(item, reply, place)) is not None), None)


def _occurs(part: Any, text: str) -> bool:
    """Whether a text is part of another, as it is or as JSON writes it, white space aside at its ends and, where a
    template changes it, inside."""
    if not isinstance(part, str):
        return True
    part = part.strip()
    if part in text:
        return True
    if any(json.dumps(part, ensure_ascii=ascii)[1:-1] in text for ascii in (False, True)):
        return True
    return "".join(part.split()) in "".join(text.split())
