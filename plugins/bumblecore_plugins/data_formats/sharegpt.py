"""Turns with `from` and `value`, tools with `function_call` and `observation` turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bumblecore_core import ChatSample, FeedbackSample, Message, PreferenceSample, RowError
from bumblecore_plugins.data_formats import ShareGptOptions
from bumblecore_plugins.data_formats.fields import boolean, join, need, need_list, need_object, optional_text, text
from bumblecore_plugins.data_formats.tools import parsed_calls, tool_definitions
from bumblecore_plugins.data_formats.turns import (
    check_ends_with_reply,
    check_ends_with_request,
    check_order,
    check_reply,
    unknown_role,
)

CALL = "call"
ROLE_OF = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": CALL,
    "tool_call": CALL,
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}


class ShareGptFormat:
    """Rows with `chosen` and `rejected` → `PreferenceSample`, with a label → `FeedbackSample`, else → `ChatSample`."""

    def __init__(self, options: ShareGptOptions) -> None:
        self.names = options

    def convert(self, *, row: Mapping[str, Any]) -> ChatSample | PreferenceSample | FeedbackSample:
        """Raises `RowError` BC007, BC011 to BC014, BC016, BC019."""
        names = self.names
        messages, paths = self._conversation(row)
        tools = tool_definitions(row.get(names.tools), names.tools)
        if row.get(names.chosen) is None or row.get(names.rejected) is None:
            check_order(messages, paths)
            check_ends_with_reply(messages, names.conversations)
            if row.get(names.label) is None:
                return ChatSample(messages=tuple(messages), tools=tools)
            label = boolean(row[names.label], names.label)
            return FeedbackSample(
                prompt=tuple(messages[:-1]), completion=tuple(messages[-1:]), label=label, tools=tools
            )
        check_order(messages, paths)
        check_ends_with_request(messages, names.conversations)
        return PreferenceSample(
            prompt=tuple(messages),
            chosen=self._reply(row, names.chosen),
            rejected=self._reply(row, names.rejected),
            tools=tools,
        )

    def _conversation(self, row: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
        names = self.names
        turns = need_list(need(row, names.conversations), names.conversations)
        messages, paths = self._messages(turns, names.conversations)
        system = optional_text(row, names.system)
        if system:
            if messages and messages[0]["role"] == "system":
                raise RowError(
                    code="BC016",
                    field=paths[0],
                    problem=f"a second system message: the row's field '{names.system}' holds one too",
                    fix="Keep one of the two",
                )
            messages.insert(0, {"role": "system", "content": system})
            paths.insert(0, names.system)
        return messages, paths

    def _reply(self, row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
        value = row[name]
        if isinstance(value, str):
            return ({"role": "assistant", "content": value},)
        messages, paths = self._messages(value if isinstance(value, list) else [value], name)
        check_reply(messages, paths, name)
        return tuple(messages)

    def _messages(self, turns: Sequence[Any], path: str) -> tuple[list[Message], list[str]]:
        """The messages of `turns` and where each came from; consecutive function calls become one message."""
        messages: list[Message] = []
        paths: list[str] = []
        calling = False
        for index, turn in enumerate(turns):
            here = f"{path}[{index}]"
            role, content, content_path = self._turn(need_object(turn, here), here)
            if role != CALL:
                messages.append({"role": role, "content": content})
                paths.append(here)
            elif calling:
                messages[-1]["tool_calls"].extend(parsed_calls(content, content_path))
            else:
                calls = parsed_calls(content, content_path)
                messages.append({"role": "assistant", "content": "", "tool_calls": calls})
                paths.append(here)
            calling = role == CALL
        return messages, paths

    def _turn(self, turn: Mapping[str, Any], path: str) -> tuple[str, str, str]:
        """(role, content, path of the content); turns with role and content are read as well."""
        names = self.names
        openai = names.role not in turn and "role" in turn
        role_key, content_key = ("role", "content") if openai else (names.role, names.content)
        role = text(need(turn, role_key, path), join(path, role_key))
        if role not in ROLE_OF:
            raise unknown_role(role, join(path, role_key), list(ROLE_OF))
        where = join(path, content_key)
        return ROLE_OF[role], text(need(turn, content_key, path), where), where
