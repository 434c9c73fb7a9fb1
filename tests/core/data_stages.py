"""A stage and formats for the data tests: tokens are bytes, and a text's first letters say what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from bumblecore_core.config.resolved import Selected
from bumblecore_core.config.schema import DataSection
from bumblecore_core.errors import DataError, RowError
from bumblecore_core.records import DataFormatRecord, NoOptions, StageRecord
from bumblecore_core.run.data.prepare import prepare_store
from bumblecore_core.values import ChatSample, Dropped, TextSample, TokenExample


@dataclass
class ByteStage:
    """`split` → one example a word; `drop`, `long`, `bad`, `cut`, `warn`, `crash` do what they say."""

    columns: tuple[str, ...] = ("input_ids", "spans")
    off: bool = False

    def encode(self, *, samples):
        assert not self.off
        return [self.encode_one(sample) for sample in samples]

    def encode_one(self, sample):
        text = sample.text if isinstance(sample, TextSample) else sample.messages[-1]["content"]
        if text.startswith("drop"):
            return Dropped(code="BC015", reason="an assistant reply is empty")
        if text.startswith("long"):
            return Dropped(code="BC028", reason="the prompt does not fit")
        if text.startswith("bad"):
            return RowError(code="BC014", field="text", problem="it is bad", fix="make it good")
        if text.startswith("crash"):
            raise ZeroDivisionError
        if text.startswith("split"):
            return [self.example(word) for word in text.split()[1:]]
        return self.example(text)

    def example(self, text):
        tokens = list(text.encode())
        return TokenExample(
            columns={"input_ids": tokens, "spans": [len(tokens)] * text.count(" ")},
            length=len(tokens),
            count=len(tokens) - 1,
            truncated=text.startswith("cut"),
            warnings=("BC025",) if text.startswith("warn") else (),
        )


class FieldFormat:
    def __init__(self, field):
        self.field = field

    def convert(self, *, row):
        if self.field not in row:
            raise RowError(code="BC007", field=self.field, problem="the field is missing", fix="add it")
        if self.field == "broken":
            return row["nothing"]
        if self.field == "chat":
            return ChatSample(messages=({"role": "assistant", "content": row["chat"]},))
        return TextSample(text=row[self.field])


def record(name, kind="text"):
    return DataFormatRecord(
        name=name,
        summary=f"Rows with {name}.",
        build=lambda *, options: FieldFormat(name),
        detect=lambda row: kind if name in row else None,
    )


RECORDS = {name: record(name, kind) for name, kind in [("text", "text"), ("chat", "chat"), ("broken", "text")]}


def stage_record(**changes):
    """The record of `ByteStage`."""
    fields = {"name": "bytes", "summary": "x", "build": ByteStage, "reads": "text", "loss_kind": "token"}
    return StageRecord(**{**fields, "default_loss": "causal_lm", **changes})


def prepare(
    *paths,
    stage=None,
    reads="text",
    stage_options=None,
    formats=None,
    format_options=None,
    make_stage=None,
    records=None,
    tokenizer="bytes",
    since=None,
    failures="",
    record_of_stage=None,
    **data,
):
    """The store of `paths` under the given data options; `formats`: name of each file's format, None for auto, with
    `format_options`; `failures`: what the registry says of plugins that could not be loaded."""
    stage = stage if stage is not None else ByteStage()
    section = DataSection(path=[path if isinstance(path, dict) else str(path) for path in paths], **data)
    names = formats or [None] * len(section.path)
    registry = SimpleNamespace(
        all=lambda kind: [SimpleNamespace(record=item) for item in (records or RECORDS).values()], failures=failures
    )
    return prepare_store(
        files=section.path,
        formats=[
            None if name is None else Selected(record=(records or RECORDS)[name], options=format_options or NoOptions())
            for name in names
        ],
        registry=registry,
        stage=stage,
        stage_record=record_of_stage or stage_record(reads=reads),
        stage_options=stage_options or NoOptions(),
        make_stage=make_stage,
        tokenizer_fingerprint=tokenizer,
        data=section,
        progress=False,
        since=since,
    )


def refused(*args, **kwargs) -> DataError:
    """What preparing the data raises."""
    with pytest.raises(DataError) as caught:
        prepare(*args, **kwargs)
    return caught.value


def summary(error: DataError) -> list[tuple[str, str]]:
    """Code and place of each problem."""
    return [(problem.code, problem.place) for problem in error.problems]


def tokens(store) -> list[str]:
    """The text of each example."""
    return [bytes(store.example(index)["input_ids"].tolist()).decode() for index in range(len(store))]
