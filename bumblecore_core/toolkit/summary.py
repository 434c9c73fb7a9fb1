"""The start summary as lines of text: shared by the console, `bumble plan` and the log file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bumblecore_core.errors import printable
from bumblecore_core.values import RunInfo

SHOWN_CHARACTERS, SHOWN_LINES = 1600, 30
CONTEXT_PART, TRAINED_PART = 300, 500  # characters of one segment
TRAINED = ("⟦", "⟧")


def summary_lines(info: RunInfo, *, config: bool = True) -> list[str]:
    """The resolved parameters, the facts, the features, and one example with its trained part between ⟦ and ⟧."""
    lines = []
    if config:
        lines += ["parameters", *(f"  {key}: {as_text(value)}" for key, value in flat_config(info.config))]
    lines += ["data and steps", *_table(info.facts)]
    lines += ["features", *_table(info.features)]
    if info.sample:
        lines += [f"first example (trained part between {TRAINED[0]} and {TRAINED[1]})", *_sample(info.sample)]
    return [printable(line, keep="\t") for line in lines]


def _table(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in pairs]


def flat_config(config: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs of a resolved config. Sections and lists of sections are taken apart
    (`loggers.0.name`); any other list is a value."""
    lines: list[tuple[str, Any]] = []
    for key, value in config.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            lines += flat_config(value, name)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for at, item in enumerate(value):
                lines += flat_config(item, f"{name}.{at}")
        else:
            lines.append((name, value))
    return lines


def as_text(value: Any) -> str:
    """A value of `flat_config` as people read it."""
    return "null" if value is None else str(value)


def _sample(segments: Sequence[tuple[str, bool]]) -> list[str]:
    cut = [(_cut(part, TRAINED_PART if trained else CONTEXT_PART), trained) for part, trained in segments]
    text = "".join(f"{TRAINED[0]}{part}{TRAINED[1]}" if trained else part for part, trained in cut)
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + f"… ({len(text) - SHOWN_CHARACTERS} characters more)"
    lines = text.split("\n")
    if len(lines) > SHOWN_LINES:
        lines = [*lines[:SHOWN_LINES], f"… ({len(lines) - SHOWN_LINES} lines more)"]
    return [f"  | {line}" for line in lines]


def _cut(text: str, most: int) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters) … {text[-half:]}"
