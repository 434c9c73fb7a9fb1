"""Messages with `role` and `content`; `prompt` with `chosen` and `rejected`, or with `completion`."""

from __future__ import annotations

from collections.abc import Sequence

from bumblecore_core import RowError
from bumblecore_core.values import SampleKind
from bumblecore_plugins.data_formats.chat_format import (
    ChatFormat,
    Fields,
    Kinds,
    Row,
    as_context,
    as_prompt,
    messages_of,
)
from bumblecore_plugins.data_formats.fields import MISSING, is_filled, is_given, lookup, need, wrong_type
from bumblecore_plugins.data_formats.messages import MessageReader
from bumblecore_plugins.data_formats.notes import RowNotes
from bumblecore_plugins.data_formats.options import OpenAIOptions
from bumblecore_plugins.data_formats.turns import (
    Order,
    Turn,
    check_ends_with_reply,
    check_ends_with_request,
    check_order,
    check_reply,
)


class OpenAIFormat(ChatFormat):
    """Rows with `messages`, or with `prompt` and `completion`, are chats, and feedback with a label; rows with `chosen`
    and `rejected` are preferences."""

    def __init__(self, options: OpenAIOptions) -> None:
        super().__init__(options)
        self._order = Order(options.merge_consecutive, options.assistant_first)
        self._reader = MessageReader(keys=("role", "content"), roles=options.roles, order=self._order)

    def kinds(self, row: Row) -> Kinds:
        """See `ChatFormat`."""
        names, pair = self.names, self.is_pair(row)
        kinds: list[SampleKind] = ["preference"] if pair else []
        completed = is_given(row, names.prompt) and is_given(row, names.completion)
        messages = lookup(row, names.messages)
        if completed or (is_filled(row, names.messages) and (not pair or self._reader.ends_with_reply(messages))):
            kinds += ["feedback", "chat"] if self.has_label(row) else ["chat"]
        if not kinds and messages is not MISSING:
            kinds = ["chat"]
        return tuple(kinds)

    def fields(self, kind: SampleKind, row: Row, notes: RowNotes) -> Fields:
        """See `ChatFormat`."""
        if kind == "preference":
            return self._preference(row, notes)
        prompt, completion = self._conversation(row, notes)
        if kind == "chat":
            return {"messages": messages_of([*prompt, *completion])}
        label = self.label(row)
        return {"prompt": messages_of(as_prompt(prompt)), "completion": messages_of(completion), "label": label}

    def _conversation(self, row: Row, notes: RowNotes) -> tuple[list[Turn], list[Turn]]:
        """A conversation and its last reply; of a prompt and its completion, only the completion is trained on."""
        names = self.names
        if not is_filled(row, names.messages) and lookup(row, names.completion) is not MISSING:
            prompt = self._reader.reply(need(row, names.prompt), names.prompt, notes, role="user")
            prompt = self.with_system(row, prompt)
            completion = self._reader.reply(need(row, names.completion), names.completion, notes)
            self._check_prompt(prompt, names.prompt)
            check_reply(completion, self._order, names.completion)
            return as_context(prompt), completion
        turns = self._reader.messages(need(row, names.messages), names.messages, notes)
        turns = self.with_system(row, turns)
        check_order(turns, self._order)
        check_ends_with_reply(turns, names.messages)
        return turns[:-1], turns[-1:]

    def _preference(self, row: Row, notes: RowNotes) -> Fields:
        fields = [self.field(row, side) for side in ("chosen", "rejected")]
        chosen, rejected = (self._reader.reply(need(row, field), field, notes) for field in fields)
        whole = _is_whole(chosen) and _is_whole(rejected)
        prompt, prompt_field = self._prompt(row, notes, whole)
        if whole:
            # whole conversations: the prompt is all but the last message, and must be that of the other side too
            check_order(chosen, self._order)
            check_order(rejected, self._order)
            inner = as_prompt(chosen[:-1])
            _same_prompt(inner, as_prompt(rejected[:-1]), fields[1])
            if prompt is not None and not _ends_with(inner, prompt):
                raise _differs(prompt_field, "is not the prompt inside the replies' conversations")
            prompt, chosen, rejected = inner, chosen[-1:], rejected[-1:]
        if prompt is None:
            need(row, self.names.prompt)  # not there, and the replies do not hold it: the error says so
            raise wrong_type(None, self.names.prompt, "text or a list of messages")
        prompt = self.with_system(row, prompt)
        self._check_prompt(prompt, prompt_field)
        check_reply(chosen, self._order, fields[0])
        check_reply(rejected, self._order, fields[1])
        sides = {"chosen": messages_of(chosen), "rejected": messages_of(rejected)}
        return {"prompt": messages_of(prompt), **sides}

    def _prompt(self, row: Row, notes: RowNotes, whole: bool) -> tuple[list[Turn] | None, str]:
        """The prompt of a pair that has one of its own, and its field. Where both replies are whole conversations,
        `messages` is that of a chat."""
        names = self.names
        if is_given(row, names.prompt):
            turns = self._reader.reply(lookup(row, names.prompt), names.prompt, notes, role="user")
            return as_prompt(turns), names.prompt
        if is_filled(row, names.messages) and not whole:
            return as_prompt(self._reader.messages(lookup(row, names.messages), names.messages, notes)), names.messages
        return None, names.prompt

    def _check_prompt(self, turns: Sequence[Turn], field: str) -> None:
        check_order(turns, self._order)
        check_ends_with_request(turns, field)


def _is_whole(turns: Sequence[Turn]) -> bool:
    """Whether a reply holds its prompt too: it does not begin with the assistant."""
    return bool(turns) and turns[0].role != "assistant"


def _ends_with(turns: Sequence[Turn], prompt: Sequence[Turn]) -> bool:
    return messages_of(turns)[len(turns) - len(prompt) :] == messages_of(prompt)


def _same_prompt(chosen: Sequence[Turn], rejected: Sequence[Turn], path: str) -> None:
    if messages_of(chosen) != messages_of(rejected):
        pairs = enumerate(zip(messages_of(chosen), messages_of(rejected), strict=False))
        first = next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
        raise _differs(f"{path}[{first}]", "is the first message in which the prompts of chosen and rejected differ")


def _differs(path: str, problem: str) -> RowError:
    return RowError(code="BC018", field=path, problem=problem, fix="Give both replies the same prompt")
