"""Single tasks with an optional history: `instruction`, `input`, `output`, `system`, `tools`, `history`."""

from __future__ import annotations

from typing import Any

from bumblecore_core import Message, RowError
from bumblecore_core.values import SampleKind
from bumblecore_plugins.data_formats.chat_format import ChatFormat, Fields, Kinds, Row
from bumblecore_plugins.data_formats.fields import (
    MISSING,
    is_filled,
    is_given,
    lookup,
    need,
    need_list,
    optional_text,
    text,
)
from bumblecore_plugins.data_formats.json_text import json_list
from bumblecore_plugins.data_formats.notes import RowNotes


class AlpacaFormat(ChatFormat):
    """Rows with `output` are chats, and feedback with a label; rows with `chosen` and `rejected` are preferences."""

    def kinds(self, row: Row) -> Kinds:
        """See `ChatFormat`."""
        if lookup(row, self.names.instruction) is MISSING:
            return ()
        kinds: list[SampleKind] = ["preference"] if self.is_pair(row) else []
        if is_given(row, self.names.output):
            kinds += ["feedback", "chat"] if self.has_label(row) else ["chat"]
        elif not kinds and lookup(row, self.names.output) is not MISSING:
            kinds = ["chat"]
        return tuple(kinds)

    def fields(self, kind: SampleKind, row: Row, notes: RowNotes) -> Fields:
        """System message, history, then instruction and input joined by a line end."""
        prompt = self._prompt(row)
        if kind == "preference":
            return {"prompt": prompt, **{side: (self._reply(row, side),) for side in ("chosen", "rejected")}}
        reply = self._reply(row, "output")
        if kind == "feedback":
            return {"prompt": prompt, "completion": (reply,), "label": self.label(row)}
        return {"messages": (*prompt, reply)}

    def _prompt(self, row: Row) -> tuple[Message, ...]:
        names = self.names
        messages: list[Message] = [turn.message for turn in self.with_system(row, ())]
        if is_filled(row, names.history):
            for index, pair in enumerate(json_list(lookup(row, names.history), names.history)):
                messages.extend(_pair(pair, f"{names.history}[{index}]"))
        instruction = text(need(row, names.instruction), names.instruction)
        parts = [part for part in (instruction, optional_text(row, names.input)) if part]
        return (*messages, {"role": "user", "content": "\n".join(parts)})

    def _reply(self, row: Row, option: str) -> Message:
        field = self.field(row, option)
        return _assistant(text(need(row, field), field))


def _pair(pair: Any, path: str) -> tuple[Message, Message]:
    turns = need_list(pair, path)
    if len(turns) != 2:
        raise RowError(
            code="BC011",
            field=path,
            problem=f"a list of {len(turns)} where a pair of user and assistant text is needed",
            fix="Write each earlier turn as [user, assistant]",
        )
    return {"role": "user", "content": text(turns[0], f"{path}[0]")}, _assistant(text(turns[1], f"{path}[1]"))


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
