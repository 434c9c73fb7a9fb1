"""Data formats: plain text, Alpaca, ShareGPT, OpenAI messages and xLAM calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bumblecore_core import DataFormatRecord, hookimpl
from bumblecore_core.protocols import DataFormat
from bumblecore_core.values import SampleKind
from bumblecore_plugins.data_formats.options import (
    AlpacaOptions,
    OpenAIOptions,
    ShareGptOptions,
    TextOptions,
    XlamOptions,
)

if TYPE_CHECKING:
    from bumblecore_plugins.data_formats.alpaca import AlpacaFormat
    from bumblecore_plugins.data_formats.chat_format import Kinds
    from bumblecore_plugins.data_formats.openai import OpenAIFormat
    from bumblecore_plugins.data_formats.sharegpt import ShareGptFormat
    from bumblecore_plugins.data_formats.xlam import XlamFormat


def _detect_text(row: Mapping[str, Any]) -> SampleKind | None:
    return "text" if "text" in row else None


def _detect_alpaca(row: Mapping[str, Any]) -> Kinds:
    return _build_alpaca(options=AlpacaOptions()).kinds(row)


def _detect_sharegpt(row: Mapping[str, Any]) -> Kinds:
    return _build_sharegpt(options=ShareGptOptions()).kinds(row)


def _detect_openai(row: Mapping[str, Any]) -> Kinds:
    kinds = _build_openai(options=OpenAIOptions()).kinds(row)
    others_pair = "instruction" in row or "conversations" in row
    return tuple(kind for kind in kinds if not (kind == "preference" and others_pair))


def _detect_xlam(row: Mapping[str, Any]) -> Kinds:
    return _build_xlam(options=XlamOptions()).kinds(row)


def _build_text(*, options: TextOptions) -> DataFormat:
    from bumblecore_plugins.data_formats.text import TextFormat

    return TextFormat(options)


def _build_alpaca(*, options: AlpacaOptions) -> AlpacaFormat:
    from bumblecore_plugins.data_formats.alpaca import AlpacaFormat

    return AlpacaFormat(options)


def _build_sharegpt(*, options: ShareGptOptions) -> ShareGptFormat:
    from bumblecore_plugins.data_formats.sharegpt import ShareGptFormat

    return ShareGptFormat(options)


def _build_openai(*, options: OpenAIOptions) -> OpenAIFormat:
    from bumblecore_plugins.data_formats.openai import OpenAIFormat

    return OpenAIFormat(options)


def _build_xlam(*, options: XlamOptions) -> XlamFormat:
    from bumblecore_plugins.data_formats.xlam import XlamFormat

    return XlamFormat(options)


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
            summary="Tasks: instruction, output or a pair; optional input, system, tools, history, kto_tag.",
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
            summary="Messages with role and content: messages; or prompt, with completion or a pair; optional label.",
            build=_build_openai,
            detect=_detect_openai,
            options=OpenAIOptions,
        ),
        DataFormatRecord(
            name="xlam",
            summary="Function calls: query, tools and answers; optional system.",
            build=_build_xlam,
            detect=_detect_xlam,
            options=XlamOptions,
        ),
    ]
