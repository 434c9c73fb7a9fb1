"""What the chat formats share: a row's kinds, tools, system message and template arguments, and unread keys."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from bumblecore_core import ChatSample, FeedbackSample, Message, Options, PreferenceSample, RowError
from bumblecore_core.values import SampleKind
from bumblecore_plugins.data_formats.fields import (
    OTHER_NAMES,
    boolean,
    field_name,
    is_filled,
    is_given,
    join,
    lookup,
    need,
    need_object,
    optional_text,
    wrong_type,
)
from bumblecore_plugins.data_formats.json_text import parse_json
from bumblecore_plugins.data_formats.notes import RowNotes
from bumblecore_plugins.data_formats.options import AlpacaOptions, OpenAIOptions, ShareGptOptions, XlamOptions
from bumblecore_plugins.data_formats.padding import without_nulls
from bumblecore_plugins.data_formats.tools import tool_definitions
from bumblecore_plugins.data_formats.turns import Turn

Row: TypeAlias = Mapping[str, Any]
Kinds: TypeAlias = tuple[SampleKind, ...]
Fields: TypeAlias = dict[str, Any]
SAMPLES: Mapping[SampleKind, type[Any]] = {
    "chat": ChatSample,
    "preference": PreferenceSample,
    "feedback": FeedbackSample,
}
TEMPLATE_KWARGS = "chat_template_kwargs"
NOT_FIELDS = frozenset({"roles", "merge_consecutive", "assistant_first", "role", "content"})
"""Options of the formats that do not name a field of a row."""


class ChatFormat:
    """Base of the chat formats. A row that can give several kinds becomes a sample of the one that the stage reads."""

    def __init__(self, options: Any) -> None:
        self.names = options
        self._mapped = [getattr(options, name) for name in _field_options(type(options))]
        self._dotted = [name for name in self._mapped if "." in name]
        # of two names of one field that a row has both, the second is not read
        self._same = [
            (name, other) for name in self._mapped for other in OTHER_NAMES.get(name, ()) if other not in self._mapped
        ]
        self._known = frozenset(self._mapped) | _default_fields(type(options)) | {TEMPLATE_KWARGS}

    def kinds(self, row: Row) -> Kinds:
        """The kinds of sample that `row` can give, the most specific first."""
        raise NotImplementedError

    def fields(self, kind: SampleKind, row: Row, notes: RowNotes) -> Fields:
        """The fields of the sample of this kind that hold messages, and its label."""
        raise NotImplementedError

    def convert(self, *, row: Row, reads: SampleKind | None = None) -> ChatSample | PreferenceSample | FeedbackSample:
        """Raises `RowError` BC007, BC011 to BC014, BC016, BC018 to BC020, BC084."""
        try:
            sample: ChatSample | PreferenceSample | FeedbackSample = self._convert(row, reads)
        except RecursionError:
            problem, fix = "the value is nested too deeply", "Leave the row out"
            raise RowError(code="BC011", field=_deepest(row), problem=problem, fix=fix) from None
        return sample

    def _convert(self, row: Row, reads: SampleKind | None) -> Any:
        notes = RowNotes(row)
        field = self.field(row, "tools")
        tools = tool_definitions(lookup(row, field), field, notes) if is_filled(row, field) else None
        kind = self._kind(row, reads)
        fields = self.fields(kind, row, notes)
        fields["template_kwargs"] = _template_kwargs(row, notes)
        self._account(row, notes)
        return SAMPLES[kind](tools=tools, warnings=notes.warnings, **fields)

    def _kind(self, row: Row, reads: SampleKind | None) -> SampleKind:
        """The kind to make of `row`: what the stage reads, or what comes nearest, whose fields say what is missing."""
        kinds = self.kinds(row)
        if reads in kinds:
            return reads
        if reads == "feedback" and "chat" in kinds and hasattr(self.names, "label"):
            return "feedback"
        if (reads == "preference" or not kinds) and any(self._sides(row)):
            return "preference"
        return kinds[0] if kinds else "chat"

    def field(self, row: Row, option: str) -> str:
        """The name of the field that an option names, or of its other name that the row has."""
        return field_name(row, getattr(self.names, option))

    def is_pair(self, row: Row) -> bool:
        """Whether the row has both a preferred and a dispreferred reply."""
        return all(self._sides(row))

    def has_label(self, row: Row) -> bool:
        """Whether the row has a label; its type is checked when it is read."""
        return is_filled(row, self.field(row, "label"))

    def label(self, row: Row) -> bool:
        """Whether the reply is desirable."""
        field = self.field(row, "label")
        return boolean(need(row, field), field)

    def with_system(self, row: Row, turns: Sequence[Turn]) -> list[Turn]:
        """`turns` after the system message of the row's own field. Raises BC016 where they begin with another one."""
        field = self.names.system
        system = optional_text(row, field)
        first = turns[0] if turns else None
        if not system or (first is not None and first.message == {"role": "system", "content": system}):
            return list(turns)
        if first is not None and first.role == "system":
            raise RowError(
                code="BC016",
                field=first.path,
                problem=f"a second system message: the row's field '{field}' holds one too",
                fix="Keep one of the two",
            )
        return [Turn({"role": "system", "content": system}, field), *turns]

    def _sides(self, row: Row) -> list[bool]:
        sides = [side for side in ("chosen", "rejected") if hasattr(self.names, side)]
        return [is_given(row, self.field(row, side)) for side in sides] or [False]

    def _account(self, row: Row, notes: RowNotes) -> None:
        """Warns of the row's keys that are neither fields of this format, nor of another schema that it is of too."""
        known = self._known
        if not row.keys() <= known:
            known = known.union(*(fields for needed, fields in SCHEMAS if needed <= row.keys()))
        second = {other for name, other in self._same if other in row and is_filled(row, name)}
        _account(row, known - second if second else known, self._dotted, notes)


def messages_of(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages as a sample holds them."""
    return tuple(turn.message for turn in turns)


def as_prompt(turns: Sequence[Turn]) -> list[Turn]:
    """`turns` without weights, which no part of a prompt has."""
    return [Turn({key: value for key, value in message.items() if key != "weight"}, path) for message, path in turns]


def as_context(turns: Sequence[Turn]) -> list[Turn]:
    """`turns` with every weight of the assistant's 0: the context of what is trained."""
    return [
        turn._replace(message={**turn.message, "weight": 0.0}) if turn.role == "assistant" else turn for turn in turns
    ]


def _deepest(row: Row) -> str:
    """The key of the most deeply nested value, found without recursion."""

    def levels(value: Any) -> int:
        count, layer = 0, [value]
        while layer:
            count += 1
            holders = [item for item in layer if isinstance(item, dict | list)]
            layer = [inner for item in holders for inner in (item.values() if isinstance(item, dict) else item)]
        return count

    return max(row, key=lambda key: levels(row[key]))


def _template_kwargs(row: Row, notes: RowNotes) -> dict[str, Any] | None:
    if not is_filled(row, TEMPLATE_KWARGS):
        return None
    value = row[TEMPLATE_KWARGS]
    if isinstance(value, str):
        try:
            return need_object(parse_json(value, TEMPLATE_KWARGS), TEMPLATE_KWARGS)
        except ValueError:
            raise wrong_type(value, TEMPLATE_KWARGS, "an object") from None
    need_object(value, TEMPLATE_KWARGS)
    return (without_nulls(value) if notes.padded else value) or None


def _account(
    item: Mapping[str, Any], known: Collection[str], dotted: Iterable[str], notes: RowNotes, path: str = ""
) -> None:
    """Warns of the unknown keys of an object, and of those that the `dotted` names enter."""
    nested: dict[str, set[str]] = {}
    for name in dotted:
        head, dot, rest = name.partition(".")
        if dot and name not in item and isinstance(item.get(head), Mapping):
            nested.setdefault(head, set()).add(rest)
    notes.account(item, {*known, *nested} if nested else known, "row", path)
    for head, names in nested.items():
        _account(item[head], names, names, notes, join(path, head))


def _field_options(options: type[Options]) -> list[str]:
    return [name for name in options.model_fields if name not in NOT_FIELDS]


def _default_fields(options: type[Options]) -> frozenset[str]:
    """The default names of a format's fields, with the other names of these."""
    names = {str(options.model_fields[name].default) for name in _field_options(options)}
    return frozenset(names.union(*(OTHER_NAMES.get(name, ()) for name in names)))


SCHEMAS: Sequence[tuple[frozenset[str], frozenset[str]]] = [
    *((frozenset(needed.split()), _default_fields(OpenAIOptions)) for needed in ("messages", "prompt completion")),
    (frozenset({"prompt", "chosen", "rejected"}), _default_fields(OpenAIOptions)),
    (frozenset({"instruction", "output"}), _default_fields(AlpacaOptions)),
    (frozenset({"instruction", "chosen", "rejected"}), _default_fields(AlpacaOptions)),
    (frozenset({"conversations"}), _default_fields(ShareGptOptions)),
    (frozenset({"query", "answers"}), _default_fields(XlamOptions)),
    (frozenset({"text"}), frozenset({"text"})),
]
"""The keys that a row of each schema must have, and all that it may have."""
