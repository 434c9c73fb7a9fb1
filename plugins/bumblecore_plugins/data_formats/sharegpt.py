"""Turns with `from` and `value`, tools with `function_call` and `observation` turns."""

from __future__ import annotations

from bumblecore_core import Message
from bumblecore_core.values import SampleKind
from bumblecore_plugins.data_formats.chat_format import ChatFormat, Fields, Kinds, Row, as_prompt, messages_of
from bumblecore_plugins.data_formats.fields import MISSING, lookup, need
from bumblecore_plugins.data_formats.messages import MessageReader
from bumblecore_plugins.data_formats.notes import RowNotes
from bumblecore_plugins.data_formats.options import ShareGptOptions
from bumblecore_plugins.data_formats.turns import (
    Order,
    check_ends_with_reply,
    check_ends_with_request,
    check_order,
    check_reply,
)


class ShareGptFormat(ChatFormat):
    """Rows with `conversations` are chats, and feedback with a label; with `chosen` and `rejected` they are
    preferences."""

    def __init__(self, options: ShareGptOptions) -> None:
        super().__init__(options)
        self._order = Order(options.merge_consecutive, options.assistant_first)
        self._reader = MessageReader(keys=(options.role, options.content), roles=options.roles, order=self._order)

    def kinds(self, row: Row) -> Kinds:
        """See `ChatFormat`."""
        turns = lookup(row, self.names.conversations)
        if turns is MISSING:
            return ()
        kinds: list[SampleKind] = ["preference"] if self.is_pair(row) else []
        if not kinds or self._reader.ends_with_reply(turns):
            kinds += ["feedback", "chat"] if self.has_label(row) else ["chat"]
        return tuple(kinds)

    def fields(self, kind: SampleKind, row: Row, notes: RowNotes) -> Fields:
        """See `ChatFormat`."""
        field = self.names.conversations
        turns = self.with_system(row, self._reader.messages(need(row, field), field, notes))
        check_order(turns, self._order)
        if kind == "preference":
            check_ends_with_request(turns, field)
            sides = {side: self._side(row, side, notes) for side in ("chosen", "rejected")}
            return {"prompt": messages_of(as_prompt(turns)), **sides}
        check_ends_with_reply(turns, field)
        if kind == "chat":
            return {"messages": messages_of(turns)}
        prompt, completion = messages_of(as_prompt(turns[:-1])), messages_of(turns[-1:])
        return {"prompt": prompt, "completion": completion, "label": self.label(row)}

    def _side(self, row: Row, option: str, notes: RowNotes) -> tuple[Message, ...]:
        field = self.field(row, option)
        turns = self._reader.reply(need(row, field), field, notes)
        check_reply(turns, self._order, field)
        return messages_of(turns)
