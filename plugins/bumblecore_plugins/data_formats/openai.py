"""Messages with `role` and `content`; `prompt` with `chosen` and `rejected`, or with `completion` and `label`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bumblecore_core import ChatSample, FeedbackSample, Message, PreferenceSample, RowError
from bumblecore_plugins.data_formats import OpenAIOptions
from bumblecore_plugins.data_formats.fields import boolean, join, need, need_list, need_object, text, wrong_type
from bumblecore_plugins.data_formats.tools import tool_call, tool_definitions
from bumblecore_plugins.data_formats.turns import (
    ROLES,
    check_ends_with_reply,
    check_ends_with_request,
    check_order,
    check_reply,
    keyword,
    unknown_role,
)

ROLE_OF = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}


class OpenAIFormat:
    """Rows with `chosen` and `rejected` → `PreferenceSample`, with `messages` → `ChatSample`, with `completion` →
    `FeedbackSample`."""

    def __init__(self, options: OpenAIOptions) -> None:
        self.names = options

    def convert(self, *, row: Mapping[str, Any]) -> ChatSample | PreferenceSample | FeedbackSample:
        """Raises `RowError` BC007, BC011 to BC014, BC016, BC018, BC019."""
        names = self.names
        tools = tool_definitions(row.get(names.tools), names.tools)
        if row.get(names.chosen) is not None and row.get(names.rejected) is not None:
            return self._preference(row, tools)
        if names.messages not in row and names.completion in row:
            return self._feedback(row, tools)
        if names.messages not in row and (names.chosen in row or names.rejected in row):
            for side in (names.chosen, names.rejected):
                if need(row, side) is None:
                    raise wrong_type(None, side, "text or a list of messages")
        messages, paths = _messages(need(row, names.messages), names.messages)
        check_order(messages, paths)
        check_ends_with_reply(messages, names.messages)
        return ChatSample(messages=tuple(messages), tools=tools)

    def _feedback(self, row: Mapping[str, Any], tools: tuple[dict[str, Any], ...] | None) -> FeedbackSample:
        names = self.names
        prompt, paths = _reading(need(row, names.prompt), names.prompt, role="user")
        completion, completion_paths = _reading(row[names.completion], names.completion, role="assistant")
        check_order(prompt, paths)
        check_ends_with_request(prompt, names.prompt)
        check_reply(completion, completion_paths, names.completion)
        label = boolean(need(row, names.label), names.label)
        return FeedbackSample(prompt=tuple(prompt), completion=tuple(completion), label=label, tools=tools)

    def _preference(self, row: Mapping[str, Any], tools: tuple[dict[str, Any], ...] | None) -> PreferenceSample:
        names = self.names
        prompt_field = names.prompt if row.get(names.prompt) is not None else names.messages
        prompt: list[Message] | None = None
        paths: list[str] = []
        if row.get(prompt_field) is not None:
            prompt, paths = _reading(row[prompt_field], prompt_field, role="user")
        chosen, chosen_paths = _reading(row[names.chosen], names.chosen, role="assistant")
        rejected, rejected_paths = _reading(row[names.rejected], names.rejected, role="assistant")
        if _is_whole(chosen) and _is_whole(rejected):
            # whole conversations: the prompt is all but the last message, and must be that of the other side too
            check_order(chosen, chosen_paths)
            check_order(rejected, rejected_paths)
            _same_prompt(chosen[:-1], rejected[:-1], names.rejected)
            if prompt is not None and not _ends_with(chosen[:-1], prompt):
                raise _differs(prompt_field, "is not the prompt inside the replies' conversations")
            prompt, paths = chosen[:-1], chosen_paths[:-1]
            chosen, chosen_paths = chosen[-1:], chosen_paths[-1:]
            rejected, rejected_paths = rejected[-1:], rejected_paths[-1:]
        if prompt is None:
            need(row, names.prompt)  # not there, and the replies do not hold it: says so
            raise wrong_type(None, names.prompt, "text or a list of messages")
        check_order(prompt, paths)
        check_ends_with_request(prompt, prompt_field)
        check_reply(chosen, chosen_paths, names.chosen)
        check_reply(rejected, rejected_paths, names.rejected)
        return PreferenceSample(prompt=tuple(prompt), chosen=tuple(chosen), rejected=tuple(rejected), tools=tools)


def _reading(value: Any, path: str, *, role: str) -> tuple[list[Message], list[str]]:
    """A text as one message of `role`, a message, or a list of them."""
    if isinstance(value, str):
        return [{"role": role, "content": value}], [path]
    return _messages([value] if isinstance(value, dict) else value, path)


def _messages(value: Any, path: str) -> tuple[list[Message], list[str]]:
    paths = [f"{path}[{index}]" for index in range(len(need_list(value, path)))]
    return [_message(need_object(item, here), here) for item, here in zip(value, paths, strict=True)], paths


def _message(item: Mapping[str, Any], path: str) -> Message:
    given = text(need(item, "role", path), join(path, "role"))
    if given not in ROLE_OF:
        raise unknown_role(given, join(path, "role"), list(ROLE_OF))
    if item.get("weight") not in (None, 1):
        raise RowError(
            code="BC011",
            field=join(path, "weight"),
            problem="message weights other than 1 are not supported",
            fix="Remove the weight, or leave the row out: the message would be trained on",
        )
    calls = _calls(item, path)
    if item.get("content") is None and calls:
        content = ""
    else:
        content = _content(need(item, "content", path), join(path, "content"))
    message: Message = {"role": ROLE_OF[given], "content": content}
    if calls:
        message["tool_calls"] = calls
    for key in ("reasoning_content", "name", "tool_call_id"):
        if item.get(key) is not None:
            message[key] = text(item[key], join(path, key))
    return message


def _content(value: Any, path: str) -> str:
    """Text, or the joined text of a list of `{"type": "text", "text": …}` parts."""
    if not isinstance(value, list):
        return text(value, path)
    texts = []
    for index, part in enumerate(value):
        here = f"{path}[{index}]"
        kind = text(need(need_object(part, here), "type", here), join(here, "type"))
        if kind != "text":
            raise RowError(
                code="BC011",
                field=join(here, "type"),
                problem=f"a part of the type{keyword(kind)} where text is needed",
                fix="Leave out rows with images, audio or files: text alone is trained on",
            )
        texts.append(text(need(part, "text", here), join(here, "text")))
    return "".join(texts)


def _calls(item: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """The message's `tool_calls`, or its old-style single `function_call`."""
    calls = item.get("tool_calls")
    if calls is None:
        old = item.get("function_call")
        return [] if old is None else [tool_call(old, join(path, "function_call"))]
    where = join(path, "tool_calls")
    return [tool_call(call, f"{where}[{index}]") for index, call in enumerate(need_list(calls, where))]


def _is_whole(messages: Sequence[Message]) -> bool:
    """Whether a reply holds its prompt too: it does not begin with the assistant."""
    return bool(messages) and messages[0]["role"] != "assistant"


def _ends_with(messages: Sequence[Message], prompt: Sequence[Message]) -> bool:
    return list(messages[len(messages) - len(prompt) :]) == list(prompt)


def _same_prompt(chosen: Sequence[Message], rejected: Sequence[Message], path: str) -> None:
    if list(chosen) != list(rejected):
        pairs = enumerate(zip(chosen, rejected, strict=False))
        first = next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
        raise _differs(f"{path}[{first}]", "is the first message in which the prompts of chosen and rejected differ")


def _differs(path: str, problem: str) -> RowError:
    return RowError(code="BC018", field=path, problem=problem, fix="Give both replies the same prompt")
