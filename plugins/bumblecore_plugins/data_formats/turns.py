"""The order that a conversation's roles must have, for every chat format alike."""

from __future__ import annotations

from collections.abc import Sequence

from bumblecore_core import Message, RowError

ROLES = ("system", "user", "assistant", "tool")
_AFTER = {
    "start": ("user",),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calling": ("tool",),
    "tool": ("tool", "assistant"),
}


def unknown_role(role: str, path: str, allowed: Sequence[str]) -> RowError:
    """BC012 with the roles that are allowed."""
    return RowError(
        code="BC012",
        field=path,
        problem=f"the role{keyword(role)} is not known; allowed: {', '.join(allowed)}",
        fix="Rename the role",
    )


def keyword(word: str) -> str:
    """` 'word'` where it can only be a keyword of the schema; empty where it may be a text of the row."""
    return f" '{word}'" if len(word) <= 20 and word.replace("_", "").isalnum() else ""


def check_order(messages: Sequence[Message], paths: Sequence[str], *, start: str = "start") -> None:
    """Checks that roles alternate: an optional system message, then user and assistant in turn, with `tool` messages
    after an assistant's tool calls. `paths[i]`: where message i came from; `start`: the state to begin in.

    Raises `RowError` BC016 for a system message that is not first, BC013 for any other disorder.
    """
    state = start
    for index, (message, path) in enumerate(zip(messages, paths, strict=True)):
        role = message["role"]
        if role == "system":
            if index > 0 or start != "start":
                raise RowError(
                    code="BC016",
                    field=path,
                    problem=f"the system message is at turn {index}, not first",
                    fix="Move it to the start of the conversation",
                )
        elif role not in _AFTER[state]:
            before = f"after {'a tool call' if state == 'calling' else state}" if index else "at the start"
            raise RowError(
                code="BC013",
                field=path,
                problem=f"turn {index} is {role} where {' or '.join(_AFTER[state])} is expected {before}",
                fix="Merge turns of one speaker, or add the one that is missing",
            )
        state = "calling" if message.get("tool_calls") else role


def check_ends_with_reply(messages: Sequence[Message], path: str) -> None:
    """Raises `RowError` BC014 unless the last message is the assistant's."""
    if not messages or messages[-1]["role"] != "assistant":
        last = f"with a {messages[-1]['role']} turn" if messages else "before it begins"
        raise RowError(
            code="BC014",
            field=path,
            problem=f"the conversation ends {last}, so there is no last reply to learn",
            fix="Add the assistant's reply or remove the turn",
        )


def check_ends_with_request(messages: Sequence[Message], path: str) -> None:
    """Raises `RowError` BC013 unless a preference's prompt ends with a turn that the assistant answers."""
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        last = f"with a {messages[-1]['role']} turn" if messages else "before it begins"
        raise RowError(
            code="BC013",
            field=path,
            problem=f"the prompt ends {last} (turn {len(messages) - 1}) where the assistant must be asked",
            fix="End it with a user or tool turn",
        )


def check_reply(messages: Sequence[Message], paths: Sequence[str], path: str) -> None:
    """Checks the completion of a preference: the assistant's turn first and last. Raises BC013, BC014, BC016."""
    check_order(messages, paths, start="user")
    check_ends_with_reply(messages, path)
