"""Which data format a row is of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from pydantic import ValidationError

from bumblecore_core.config.resolved import Selected
from bumblecore_core.errors import DataError, PluginError, one
from bumblecore_core.records import DataFormatRecord
from bumblecore_core.registry.validate import typename
from bumblecore_core.run.blame import TRACEBACK, Plugin, breach, place_of
from bumblecore_core.run.data.columns import LONGEST_KEY, likely_columns, yaml_of
from bumblecore_core.values import ChatSample, FeedbackSample, PreferenceSample, SampleKind, TextSample

KIND_OF: Mapping[type, SampleKind] = {
    TextSample: "text",
    ChatSample: "chat",
    PreferenceSample: "preference",
    FeedbackSample: "feedback",
}
KINDS = tuple(KIND_OF.values())
Match: TypeAlias = tuple[DataFormatRecord, tuple[SampleKind, ...]]
"""A format, and the kinds of sample that it can make of a row."""


def matching(records: Sequence[DataFormatRecord], row: Mapping[str, Any]) -> list[Match]:
    """The formats that `row` is of, by name. Raises `PluginError` BC060 where a plugin's `detect` raises, or returns
    what is not a kind or kinds."""
    found: list[Match] = []
    for record in sorted(records, key=lambda record: record.name):
        try:
            detected = record.detect(row)
        except (Exception, SystemExit) as error:  # its text may hold the row's
            problem = f"{Plugin.of(record)} raised {type(error).__name__} in detect ({place_of(error)})"
            fix = f"Name data.format, and report this to its author; {TRACEBACK}"
            raise one(PluginError, "BC060", problem, fix) from error
        kinds = kinds_of(detected)
        if kinds is None:
            fault = f"returned {typename(detected)} from detect, not a kind of sample"
            raise breach(Plugin.of(record), fault, f"`detect` returns None, or one or a tuple of {', '.join(KINDS)}")
        if kinds:
            found.append((record, kinds))
    return found


def kinds_of(detected: Any) -> tuple[SampleKind, ...] | None:
    """What a `detect` returned as kinds: none for None, one, or several. None if it is something else."""
    if detected is None:
        return ()
    kinds = detected if isinstance(detected, tuple | list) else (detected,)
    return tuple(kinds) if all(isinstance(kind, str) and kind in KINDS for kind in kinds) else None


def takes_reads(convert: Callable[..., Any]) -> bool:
    """Whether a format's `convert` has a parameter for the kind of sample that the stage reads."""
    try:
        return "reads" in inspect.signature(convert).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False


def suggested(records: Sequence[DataFormatRecord], row: Mapping[str, Any], reads: SampleKind) -> str:
    """`, such as data.format: {…}` for the first format that reads `row` if options name its likely columns."""
    for record in sorted(records, key=lambda record: record.name):
        try:
            options = record.options().model_dump()
        except ValidationError:  # it has options that must be set
            continue
        columns = likely_columns(options, row)
        renamed = {**row, **{options[option]: row[column] for option, column in columns.items()}}
        if columns and any(reads in kinds for _, kinds in matching([record], renamed)):
            return f", such as data.format: {yaml_of({'name': record.name, **columns})}"
    return ""


def choose_format(
    row: Mapping[str, Any],
    *,
    records: Sequence[DataFormatRecord],
    reads: SampleKind,
    stage: str,
    place: str,
    failed: str = "",
) -> Selected[DataFormatRecord]:
    """The one format that `row` is of. Where several match, the one that can give what the stage reads. `failed`: which
    plugins could not be loaded, one of which may be the one that is missing here.

    Raises `DataError` BC062 where none or several fit, BC063 where the format gives another kind than `reads`.
    """
    found = matching(records, row)
    fitting = [(record, kinds) for record, kinds in found if reads in kinds]
    candidates = fitting or found
    if not candidates:
        needs = "; ".join(f"{record.name}: {record.summary.rstrip('.')}" for record in records)
        problem = f"no data format is known for rows with the keys {keys_of(row)}"
        such = suggested(records, row, reads)
        fix = f"Name data.format{such}, with its options for other field names ({needs}){failed}"
        raise one(DataError, "BC062", problem, fix, place=place)
    if len(candidates) > 1:
        names = " and ".join(f"'{record.name}'" for record, _ in candidates)
        problem = f"rows with the keys {keys_of(row)} could be of the data formats {names}"
        raise one(DataError, "BC062", problem, "Name the one that is meant in data.format", place=place)
    record, kinds = candidates[0]
    if reads not in kinds:
        raise wrong_kind(record.name, kinds[0], reads=reads, stage=stage, place=place)
    try:
        return Selected(record=record, options=record.options())
    except ValidationError as error:
        problem = f"rows look like the data format '{record.name}', which has options that must be set"
        raise one(DataError, "BC062", problem, "Name it in data.format with its options", place=place) from error


def wrong_kind(name: str, kind: SampleKind, *, reads: SampleKind, stage: str, place: str) -> Exception:
    """The `DataError` BC063 of a file whose samples the stage does not read."""
    problem = f"the data format '{name}' gives {kind} samples here, and the stage '{stage}' reads {reads} samples"
    return one(DataError, "BC063", problem, f"Use {reads} data, or a stage that reads {kind} data", place=place)


def kind_of(sample: Any) -> SampleKind | None:
    """The kind of a sample; None for anything that is not one."""
    return KIND_OF.get(type(sample))


def sample_fault(sample: Any) -> str | None:
    """What is wrong with what a format's `convert` returned: its type, or the types of its parts, from which the stage
    would conclude that the row is wrong."""
    if kind_of(sample) is None:
        return f"returned {typename(sample)}, which is no sample"
    for part in fields(sample):
        value, (right, wanted) = getattr(sample, part.name), PARTS.get(part.name, (_anything, ""))
        if not right(value):
            return f"returned a {type(sample).__name__} whose {part.name} is {typename(value)}, not {wanted}"
    return None


def _are_dicts(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(item, dict) for item in value)


def _are_messages(value: Any) -> bool:
    return _are_dicts(value) and all(isinstance(message.get("role"), str) for message in value)


def _anything(value: Any) -> bool:
    return True


_MESSAGES = (_are_messages, "a tuple of messages with a role")
PARTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "text": (lambda value: isinstance(value, str), "text"),
    "label": (lambda value: isinstance(value, bool), "a boolean"),
    "tools": (lambda value: value is None or _are_dicts(value), "a tuple of dicts"),
    "template_kwargs": (lambda value: value is None or isinstance(value, Mapping), "a mapping"),
    "warnings": (lambda value: isinstance(value, tuple | list) and all(isinstance(i, str) for i in value), "texts"),
    **dict.fromkeys(("messages", "prompt", "chosen", "rejected", "completion"), _MESSAGES),
}
"""What each field of a sample must be, and the words for it."""


def keys_of(row: Mapping[str, Any], most: int = 12) -> str:
    """The row's keys for a message."""
    names = [str(key)[:LONGEST_KEY] for key in row]
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return shown or "(none)"
