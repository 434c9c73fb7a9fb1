"""A question, the tools, and the calls that answer it: `query`, `tools`, `answers`."""

from __future__ import annotations

from bumblecore_core import Message
from bumblecore_core.values import SampleKind
from bumblecore_plugins.data_formats.chat_format import ChatFormat, Fields, Kinds, Row
from bumblecore_plugins.data_formats.fields import MISSING, lookup, need, text
from bumblecore_plugins.data_formats.notes import RowNotes
from bumblecore_plugins.data_formats.tools import tool_calls


class XlamFormat(ChatFormat):
    """Rows with `query` and `answers` are chats of two messages."""

    def kinds(self, row: Row) -> Kinds:
        """See `ChatFormat`."""
        names = (self.names.query, self.names.answers, self.names.tools)
        return () if any(lookup(row, name) is MISSING for name in names) else ("chat",)

    def fields(self, kind: SampleKind, row: Row, notes: RowNotes) -> Fields:
        """The question, and a reply without text that makes the calls."""
        names = self.names
        system = [turn.message for turn in self.with_system(row, ())]
        question: Message = {"role": "user", "content": text(need(row, names.query), names.query)}
        reply: Message = {"role": "assistant", "content": ""}
        calls = tool_calls(need(row, names.answers), names.answers, notes)
        if calls:
            reply["tool_calls"] = calls
        return {"messages": (*system, question, reply)}
