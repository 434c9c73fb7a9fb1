"""Checks of data formats: good rows convert, bad rows say where they are bad and never show their text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from bumblecore_core.errors import CODES, RowError
from bumblecore_core.records import DataFormatRecord
from bumblecore_core.values import ChatSample, FeedbackSample, PreferenceSample, Sample, SampleKind, TextSample

KIND_OF_SAMPLE: Mapping[type[Any], SampleKind] = {
    TextSample: "text",
    ChatSample: "chat",
    PreferenceSample: "preference",
    FeedbackSample: "feedback",
}
ROLES = ("system", "user", "assistant", "tool")
STRANGE_ROWS: Sequence[dict[str, Any]] = ({}, {"zzz": 1}, {"zzz": None, "yyy": [{"zzz": 7}]})
_SHORTEST_SECRET = 8


def check_data_format(
    format: Any, rows: Sequence[Mapping[str, Any]], *, record: DataFormatRecord | None = None
) -> None:
    """Raises `AssertionError` unless a built data format keeps its contract on `rows`, which must be good rows of it:

    - each row converts to a sample of one of the four kinds, twice alike, and is left as it was;
    - with a field missing, null or a number, `convert` still converts or raises `RowError` with a known code and a
      field, and its message never holds a text of the row;
    - with `record`: `detect` returns for each row the kind that it converts to, or several: then `convert` takes
      `reads` and returns a sample of each of them. It returns None for rows of quite other keys, and never raises.
    """
    assert rows, "give at least one good row"
    for index, row in enumerate(rows):
        before = copy.deepcopy(dict(row))
        sample = format.convert(row=row)
        _check_sample(sample, f"row {index}")
        assert dict(row) == before, f"row {index}: convert changed the row"
        assert format.convert(row=row) == sample, f"row {index}: converting it again gives another sample"
        if record is not None:
            kinds = _check_detect(record, row)
            assert KIND_OF_SAMPLE[type(sample)] in kinds, f"row {index} is detected as {record.detect(row)!r}"
            for kind in kinds if len(kinds) > 1 else ():
                made = KIND_OF_SAMPLE[type(format.convert(row=row, reads=kind))]
                assert made == kind, f"row {index} is detected as {kind} too, but converts to {made}"
        for spoilt in _spoilt(row):
            _check_spoilt(format, spoilt, f"row {index}")
            _check_detect(record, spoilt)
    for strange in STRANGE_ROWS:
        _check_spoilt(format, strange, f"the row {strange}")
        assert not _check_detect(record, strange), f"detect claims the row {strange}"


def _check_sample(sample: Sample, where: str) -> None:
    assert type(sample) in KIND_OF_SAMPLE, f"{where} converts to a {type(sample).__name__}, not a sample"
    if isinstance(sample, TextSample):
        assert isinstance(sample.text, str), f"{where}: text is a {type(sample.text).__name__}"
        return
    parts = {"messages": sample.messages} if isinstance(sample, ChatSample) else {}
    if isinstance(sample, PreferenceSample):
        parts = {"prompt": sample.prompt, "chosen": sample.chosen, "rejected": sample.rejected}
    if isinstance(sample, FeedbackSample):
        parts = {"prompt": sample.prompt, "completion": sample.completion}
        assert isinstance(sample.label, bool), f"{where}: label is a {type(sample.label).__name__}, not a boolean"
    for name, messages in parts.items():
        assert isinstance(messages, tuple), f"{where}: {name} is a {type(messages).__name__}, not a tuple"
        for index, message in enumerate(messages):
            role = message.get("role")
            assert role in ROLES, f"{where}: {name}[{index}].role is none of {', '.join(ROLES)}"
            assert message.get("content") is not None or message.get("tool_calls"), f"{where}: {name}[{index}] is empty"


def _spoilt(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    without = [{name: value for name, value in row.items() if name != left_out} for left_out in row]
    changed = [{**row, name: value} for name in row for value in (None, 7, [7])]
    return without + changed


def _check_spoilt(format: Any, row: Mapping[str, Any], where: str) -> None:
    try:
        sample = format.convert(row=row)
    except RowError as error:
        problem = error.problem
        assert problem.code in CODES, f"{where}, spoilt: RowError with the unknown code {problem.code}"
        assert problem.field, f"{where}, spoilt: RowError without a field"
        shown = f"{problem.problem} {problem.fix} {problem.field}"
        leaked = [text for text in _texts(row) if len(text) >= _SHORTEST_SECRET and text in shown]
        assert not leaked, f"{where}, spoilt: the error's message holds the row's own text"
    except Exception as error:
        raise AssertionError(
            f"{where}, spoilt to the keys {sorted(row)}: convert raised {type(error).__name__}, not RowError"
        ) from error
    else:
        _check_sample(sample, f"{where}, spoilt")


def _check_detect(record: DataFormatRecord | None, row: Mapping[str, Any]) -> tuple[SampleKind, ...]:
    if record is None:
        return ()
    try:
        detected = record.detect(row)
    except Exception as error:
        raise AssertionError(f"detect raised {type(error).__name__} for a row with the keys {sorted(row)}") from error
    kinds = () if detected is None else tuple(detected) if isinstance(detected, (tuple, list)) else (detected,)
    assert set(kinds) <= set(get_args(SampleKind)), f"detect returned {detected!r}"
    return kinds


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [text for item in items for text in _texts(item)]
