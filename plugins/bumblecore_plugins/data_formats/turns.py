"""The order that a conversation's roles must have, for every chat format alike, and what is merged before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bumblecore_core import Message, RowError

ROLES = ("system", "user", "assistant", "tool")
MUST_AGREE = ("role", "weight", "name")
"""The keys in which merged messages agree."""
_AFTER: Mapping[str, tuple[str, ...]] = {
    "start": ("user",),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "calling": ("tool",),
    "tool": ("tool", "assistant"),
}


class Turn(NamedTuple):
    """A message, and where in the row it came from."""

    message: Message
    path: str

    @property
    def role(self) -> str:
        """Who speaks."""
        return str(self.message["role"])


class Order(NamedTuple):
    """What a conversation may look like: the options of the same names."""

    merge_consecutive: bool
    assistant_first: bool


def unknown_role(role: str, path: str, allowed: Sequence[str]) -> RowError:
    """BC012 with the roles that are allowed."""
    return RowError(
        code="BC012",
        field=path,
        problem=f"the role{keyword(role)} is not known; allowed: {', '.join(allowed)}",
        fix="Rename the role, or name it in the option roles of data.format",
    )


def keyword(word: str) -> str:
    """` 'word'` where it can only be a keyword of the schema; empty where it may be a text of the row."""
    return f" '{word}'" if len(word) <= 20 and word.replace("_", "").isalnum() else ""


def merged(turns: Sequence[Turn], order: Order) -> list[Turn]:
    """`turns` with calls that have a turn of their own in the assistant's message before them; with
    `merge_consecutive`, further turns of one role are joined by a blank line. Messages that differ in weight or name
    stay apart."""
    result: list[Turn] = []
    for turn in turns:
        before = result[-1] if result else None
        if before is None or any(before.message.get(key) != turn.message.get(key) for key in MUST_AGREE):
            result.append(turn)
        elif _holds_only_calls(turn.message):
            calls = [*before.message.get("tool_calls", []), *turn.message["tool_calls"]]
            result[-1] = Turn({**before.message, "tool_calls": calls}, before.path)
        elif order.merge_consecutive and turn.role != "tool" and "tool_calls" not in before.message:
            result[-1] = Turn(_joined(before.message, turn.message), before.path)
        else:
            result.append(turn)
    return result


def check_order(turns: Sequence[Turn], order: Order, *, start: str = "start") -> None:
    """Checks that roles alternate: an optional system message, then user and assistant in turn, with `tool` messages
    after the assistant's. `start`: the state to begin in.

    Raises `RowError` BC016 for a system message that is not first, BC013 for any other disorder.
    """
    state = start
    for index, (message, path) in enumerate(turns):
        role = message["role"]
        if role == "system":
            if index > 0 or start != "start":
                raise RowError(
                    code="BC016",
                    field=path,
                    problem=f"the system message is at turn {index}, not first",
                    fix="Move it to the start of the conversation",
                )
        elif role not in _AFTER[state] and not (
            order.assistant_first and state in ("start", "system") and role == "assistant"
        ):
            raise _disorder(index, role, state, path)
        state = "calling" if message.get("tool_calls") else role


def check_ends_with_reply(turns: Sequence[Turn], path: str) -> None:
    """Raises `RowError` BC014 unless the last message is the assistant's."""
    if not turns or turns[-1].role != "assistant":
        last = f"with a {turns[-1].role} turn" if turns else "before it begins"
        raise RowError(
            code="BC014",
            field=path,
            problem=f"the conversation ends {last}, so there is no last reply to learn",
            fix="Add the assistant's reply or remove the turn",
        )


def check_ends_with_request(turns: Sequence[Turn], path: str) -> None:
    """Raises `RowError` BC013 unless a prompt ends with a turn that the assistant answers."""
    if not turns or turns[-1].role not in ("user", "tool"):
        last = f"with a {turns[-1].role} turn" if turns else "before it begins"
        raise RowError(
            code="BC013",
            field=path,
            problem=f"the prompt ends {last} (turn {len(turns) - 1}) where the assistant must be asked",
            fix="End it with a user or tool turn",
        )


def check_reply(turns: Sequence[Turn], order: Order, path: str) -> None:
    """Checks a completion: the assistant's turn first and last. Raises BC013, BC014, BC016."""
    check_order(turns, order, start="user")
    check_ends_with_reply(turns, path)


def _holds_only_calls(message: Message) -> bool:
    return bool(message.get("tool_calls")) and not message["content"] and not message.get("reasoning_content")


def _joined(one: Message, other: Message) -> Message:
    joined = {**one, **other}
    for key in ("content", "reasoning_content"):
        texts = [message[key] for message in (one, other) if message.get(key)]
        if texts or key == "content":
            joined[key] = "\n\n".join(texts)
    return joined


def _disorder(index: int, role: str, state: str, path: str) -> RowError:
    before = f"after {'a tool call' if state == 'calling' else state}" if index else "at the start"
    fix = "Add the turn that is missing"
    if role == state:
        fix += ", or set merge_consecutive: true in the options of data.format to join turns of one role"
    elif role == "assistant" and state in ("start", "system"):
        fix += ", or set assistant_first: true in the options of data.format"
    return RowError(
        code="BC013",
        field=path,
        problem=f"turn {index} is {role} where {' or '.join(_AFTER[state])} is expected {before}",
        fix=fix,
    )
