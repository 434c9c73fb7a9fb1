"""The start summary as lines of text: shared by the console, `bumble plan` and the log file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bumblecore_core.values import RunInfo

SHOWN_CHARACTERS = 1200
TRAINED = ("⟦", "⟧")


def summary_lines(info: RunInfo, *, config: bool = True) -> list[str]:
    """The resolved parameters, the facts, the features, and one example with its trained part between ⟦ and ⟧."""
    lines = []
    if config:
        lines += ["parameters", *(f"  {key}: {value}" for key, value in _flat(info.config))]
    lines += ["data and steps", *_table(info.facts)]
    lines += ["features", *_table(info.features)]
    if info.sample:
        lines += [f"first example (trained part between {TRAINED[0]} and {TRAINED[1]})", *_sample(info.sample)]
    return lines


def _table(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in pairs]


def _flat(config: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            lines += _flat(value, name)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for at, item in enumerate(value):
                lines += _flat(item, f"{name}.{at}")
        else:
            lines.append((name, "null" if value is None else str(value)))
    return lines


def _sample(segments: Sequence[tuple[str, bool]]) -> list[str]:
    text = "".join(f"{TRAINED[0]}{part}{TRAINED[1]}" if trained else part for part, trained in segments)
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + f"… ({len(text) - SHOWN_CHARACTERS} characters more)"
    return [f"  | {line}" for line in text.split("\n")]
