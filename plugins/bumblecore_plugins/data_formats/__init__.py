"""Data formats: plain text, Alpaca, ShareGPT and OpenAI messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from bumblecore_core import DataFormatRecord, Options, hookimpl
from bumblecore_core.protocols import DataFormat
from bumblecore_core.values import SampleKind


class TextOptions(Options):
    """Options of `text`."""

    field: str = Field("text", description="The field that holds the text.")


class AlpacaOptions(Options):
    """Options of `alpaca`: the names of a row's fields."""

    instruction: str = Field("instruction", description="The field that holds the task.")
    input: str = Field("input", description="The field that holds the task's input; joined to it by a line end.")
    output: str = Field("output", description="The field that holds the reply.")
    system: str = Field("system", description="The field that holds the system message.")
    history: str = Field("history", description="The field that holds earlier turns, as [user, assistant] pairs.")
    chosen: str = Field("chosen", description="The field that holds the preferred reply.")
    rejected: str = Field("rejected", description="The field that holds the dispreferred reply.")
    label: str = Field("kto_tag", description="The field that says whether the reply is desirable, as a boolean.")


class ShareGptOptions(Options):
    """Options of `sharegpt`: the names of a row's and a turn's fields."""

    conversations: str = Field("conversations", description="The field that holds the turns.")
    role: str = Field("from", description="A turn's field that says who speaks.")
    content: str = Field("value", description="A turn's field that holds the text.")
    system: str = Field("system", description="The field that holds the system message.")
    tools: str = Field("tools", description="The field that holds the tool definitions, as a list or as JSON.")
    chosen: str = Field("chosen", description="The field that holds the preferred turn or turns.")
    rejected: str = Field("rejected", description="The field that holds the dispreferred turn or turns.")
    label: str = Field("kto_tag", description="The field that says whether the last turn is desirable, as a boolean.")


class OpenAIOptions(Options):
    """Options of `openai`: the names of a row's fields."""

    messages: str = Field("messages", description="The field that holds the messages.")
    tools: str = Field("tools", description="The field that holds the tool definitions, as a list or as JSON.")
    prompt: str = Field("prompt", description="The field that holds a preference's prompt, a text or messages.")
    completion: str = Field("completion", description="The field that holds a labelled reply, a text or messages.")
    label: str = Field("label", description="The field that says whether the completion is desirable, as a boolean.")
    chosen: str = Field("chosen", description="The field that holds the preferred reply, a text or messages.")
    rejected: str = Field("rejected", description="The field that holds the dispreferred reply, a text or messages.")


def _is_pair(row: Mapping[str, Any]) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


def _detect_text(row: Mapping[str, Any]) -> SampleKind | None:
    return "text" if "text" in row else None


def _detect_alpaca(row: Mapping[str, Any]) -> SampleKind | None:
    if "instruction" not in row:
        return None
    if _is_pair(row):
        return "preference"
    if "output" not in row:
        return None
    return "feedback" if row.get("kto_tag") is not None else "chat"


def _detect_sharegpt(row: Mapping[str, Any]) -> SampleKind | None:
    if "conversations" not in row:
        return None
    if _is_pair(row):
        return "preference"
    return "feedback" if row.get("kto_tag") is not None else "chat"


def _detect_openai(row: Mapping[str, Any]) -> SampleKind | None:
    if _is_pair(row):
        return None if "instruction" in row or "conversations" in row else "preference"
    if "messages" in row:
        return "chat"
    return "feedback" if {"prompt", "completion", "label"} <= row.keys() else None


def _build_text(*, options: TextOptions) -> DataFormat:
    from bumblecore_plugins.data_formats.text import TextFormat

    return TextFormat(options)


def _build_alpaca(*, options: AlpacaOptions) -> DataFormat:
    from bumblecore_plugins.data_formats.alpaca import AlpacaFormat

    return AlpacaFormat(options)


def _build_sharegpt(*, options: ShareGptOptions) -> DataFormat:
    from bumblecore_plugins.data_formats.sharegpt import ShareGptFormat

    return ShareGptFormat(options)


def _build_openai(*, options: OpenAIOptions) -> DataFormat:
    from bumblecore_plugins.data_formats.openai import OpenAIFormat

    return OpenAIFormat(options)


@hookimpl
def bumble_data_formats() -> list[DataFormatRecord]:
    """The built-in formats; `detect` knows the default field names alone."""
    return [
        DataFormatRecord(
            name="text",
            summary="Plain text: text.",
            build=_build_text,
            detect=_detect_text,
            options=TextOptions,
        ),
        DataFormatRecord(
            name="alpaca",
            summary="Tasks: instruction and output (or chosen, rejected); optional kto_tag, input, system, history.",
            build=_build_alpaca,
            detect=_detect_alpaca,
            options=AlpacaOptions,
        ),
        DataFormatRecord(
            name="sharegpt",
            summary="Turns with from and value: conversations; optional system, tools, kto_tag, chosen and rejected.",
            build=_build_sharegpt,
            detect=_detect_sharegpt,
            options=ShareGptOptions,
        ),
        DataFormatRecord(
            name="openai",
            summary="Messages with role and content: messages; or prompt, with completion and label or a pair.",
            build=_build_openai,
            detect=_detect_openai,
            options=OpenAIOptions,
        ),
    ]
