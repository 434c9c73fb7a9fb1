"""Turns of any dialect to messages: who speaks, text, reasoning, calls and weight under one name each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bumblecore_core import Message, RowError
from bumblecore_plugins.data_formats.fields import is_null, join, need, need_object, text, wrong_type
from bumblecore_plugins.data_formats.json_text import json_list
from bumblecore_plugins.data_formats.notes import RowNotes
from bumblecore_plugins.data_formats.parts import Content, read_content, read_result
from bumblecore_plugins.data_formats.tools import malformed, tool_calls
from bumblecore_plugins.data_formats.turns import ROLES, Order, Turn, merged, unknown_role

CALL = "function_call"
ROLE_OF: Mapping[str, str] = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    **dict.fromkeys(("gpt", "model", "bot", "chatbot", "ai"), "assistant"),
    **dict.fromkeys(("function", "function_response", "observation", "ipython", "tool_response"), "tool"),
    **dict.fromkeys((CALL, "tool_call"), CALL),
}
"""The roles that are known, in any case of letters."""
REASONING = ("reasoning_content", "reasoning", "thinking")
SWITCHES = ("train", "training", "trainable", "loss")
FACTORS = ("weight", "loss_weight")
FLAGS = frozenset({*SWITCHES, *FACTORS})
COMMON = FLAGS | {"name"}
KNOWN: Mapping[str, frozenset[str]] = {
    "assistant": COMMON | {"tool_calls", CALL, *REASONING},
    "tool": COMMON | {"tool_call_id"},
}
"""The keys that are read of a role's messages, besides role and content."""
LARGEST_WEIGHT = 1e6


class MessageReader:
    """Reads the messages of one format. `keys`: a turn's fields that say who speaks and what, unless it has `role`;
    `roles`: further names of roles."""

    def __init__(self, *, keys: tuple[str, str], roles: Mapping[str, str], order: Order) -> None:
        self._keys, self._roles, self.order = keys, roles, order

    def messages(self, value: Any, path: str, notes: RowNotes) -> list[Turn]:
        """The messages of a list, or of its JSON, merged where the options want it."""
        items = json_list(value, path)
        if isinstance(value, str):
            notes.padded = False  # JSON text needs no padding
        turns = [self._turn(item, f"{path}[{index}]", notes) for index, item in enumerate(items)]
        return merged(turns, self.order)

    def reply(self, value: Any, path: str, notes: RowNotes, *, role: str = "assistant") -> list[Turn]:
        """A text as one message of `role`, a message, or a list of them."""
        if isinstance(value, str):
            return [Turn({"role": role, "content": value}, path)]
        return self.messages([value] if isinstance(value, dict) else value, path, notes)

    def ends_with_reply(self, value: Any) -> bool:
        """Whether the last of a row's turns is the assistant's. JSON text is not parsed for this, and passes."""
        if isinstance(value, list):
            return bool(value) and self._speaker(value[-1]) == "assistant"
        return isinstance(value, str)

    def _speaker(self, item: Any) -> str | None:
        spoken = item.get(self._pair(item)[0]) if isinstance(item, Mapping) else None
        role = self._role(spoken) if isinstance(spoken, str) else None
        return "assistant" if role == CALL else role

    def _turn(self, item: Any, path: str, notes: RowNotes) -> Turn:
        need_object(item, path)
        role_key, content_key = self._pair(item)
        spoken = text(need(item, role_key, path), join(path, role_key))
        role = self._role(spoken)
        if role is None:
            raise unknown_role(spoken, join(path, role_key), [*ROLE_OF, *self._roles])
        if len(item) == 2 and role != CALL and isinstance(item.get(content_key), str):  # as most messages are
            return Turn({"role": role, "content": item[content_key]}, path)
        speaker = "assistant" if role == CALL else role
        message: Message = {"role": speaker, **_READ.get(role, _read_text)(item, content_key, path, notes)}
        if item.get("name") is not None:
            message["name"] = text(item["name"], join(path, "name"))
        weight = _weight(item, path, notes, trained=speaker == "assistant")
        if weight != 1:
            message["weight"] = weight
        notes.account(item, KNOWN.get(speaker, COMMON) | {role_key, content_key}, "message", path)
        return Turn(message, path)

    def _pair(self, item: Mapping[str, Any]) -> tuple[str, str]:
        """A turn's keys: the configured ones, or where it lacks them those of the other dialect."""
        if self._keys[0] in item:
            return self._keys
        other = ("role", "content") if "role" in item else ("from", "value")
        return other if other[0] in item else self._keys

    def _role(self, spoken: str) -> str | None:
        return self._roles.get(spoken) or ROLE_OF.get(spoken.lower())


def _read_text(item: Mapping[str, Any], content_key: str, path: str, notes: RowNotes) -> Message:
    return {"content": read_content(need(item, content_key, path), join(path, content_key), notes).text}


def _read_result(item: Mapping[str, Any], content_key: str, path: str, notes: RowNotes) -> Message:
    message = {"content": read_result(need(item, content_key, path), join(path, content_key), notes)}
    if item.get("tool_call_id") is not None:
        message["tool_call_id"] = _identifier(item["tool_call_id"], join(path, "tool_call_id"))
    return message


def _read_call(item: Mapping[str, Any], content_key: str, path: str, notes: RowNotes) -> Message:
    where = join(path, content_key)
    calls = tool_calls(need(item, content_key, path), where, notes)
    if not calls:
        raise malformed(where, "the list of calls is empty")
    return _with_reasoning("", calls, item, path, ())


def _read_reply(item: Mapping[str, Any], content_key: str, path: str, notes: RowNotes) -> Message:
    calls = _calls(item, path, notes)
    if item.get(content_key) is None and calls:
        content = Content("")
    else:
        content = read_content(need(item, content_key, path), join(path, content_key), notes, assistant=True)
    texts = (content.reasoning,) if content.reasoning else ()
    return _with_reasoning(content.text, [*calls, *content.calls], item, path, texts)


def _with_reasoning(
    content: str, calls: list[dict[str, Any]], item: Mapping[str, Any], path: str, texts: tuple[str, ...]
) -> Message:
    """The parts of an assistant's message; `texts`: reasoning that was found in its content."""
    message: Message = {"content": content}
    if calls:
        message["tool_calls"] = calls
    named = [(join(path, key), item[key]) for key in REASONING if not is_null(item.get(key))]
    read = [text(value, where) for where, value in named]
    different = list(dict.fromkeys(reasoning for reasoning in (*texts, *read) if reasoning))
    if len(different) > 1:
        raise RowError(
            code="BC011",
            field=named[-1][0],
            problem="two fields hold different reasoning for one message",
            fix="Keep one of them",
        )
    if different:
        message["reasoning_content"] = different[0]
    return message


def _calls(item: Mapping[str, Any], path: str, notes: RowNotes) -> list[dict[str, Any]]:
    """The message's `tool_calls`, or its old-style single `function_call`."""
    calls = [] if is_null(item.get("tool_calls")) else tool_calls(item["tool_calls"], join(path, "tool_calls"), notes)
    if is_null(item.get(CALL)):
        return calls
    if calls:
        notes.unread("message", CALL)
        return calls
    return tool_calls(item[CALL], join(path, CALL), notes)


def _weight(item: Mapping[str, Any], path: str, notes: RowNotes, *, trained: bool) -> float:
    """The factor on the loss of a message: 0 where a switch is off, otherwise the smallest factor, 1 without any."""
    if FLAGS.isdisjoint(item):
        return 1.0
    given = [key for key in (*SWITCHES, *FACTORS) if item.get(key) is not None]
    factors = {key: _factor(item[key], join(path, key), is_switch=key in SWITCHES) for key in given}
    if trained:
        numbers = [factor for key, factor in factors.items() if key in FACTORS]
        return 0.0 if 0.0 in factors.values() else min(numbers, default=1.0)
    for key, factor in factors.items():
        if factor:
            notes.unread("message", key, "is read on assistant messages only")
    return 1.0


def _factor(value: Any, path: str, *, is_switch: bool) -> float:
    if isinstance(value, int | float) and (value in (0, 1) if is_switch else 0 <= value <= LARGEST_WEIGHT):
        return float(value)
    raise wrong_type(value, path, "true or false" if is_switch else f"a number from 0 to {LARGEST_WEIGHT:,.0f}")


def _identifier(value: Any, path: str) -> str:
    return str(value) if type(value) is int else text(value, path)


_READ = {"tool": _read_result, "assistant": _read_reply, CALL: _read_call}
"""What reads the content of a role's messages, and what belongs to it; of the others it is text."""
