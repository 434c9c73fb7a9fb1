"""The configuration reference, written from the schema and the installed plugins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from bumblecore_core.config.resolve import Plugins
from bumblecore_core.config.schema import DataFile, RunConfig
from bumblecore_core.config.shape import CHOICES, default_name, sections
from bumblecore_core.registry.options import OptionLine, default_text, describe_options, field_type

_HEADER = """# Configuration

A run is one YAML file. This page is generated from the schema and the installed plugins; `bumble config schema` gives
the same as JSON Schema for editors, `bumble config init STAGE` a commented file to start from.

- The command line beats the file, which beats the defaults: `bumble run run.yaml --set optimizer.lr=1e-5`. A number in
  a key is an index of a list: `--set data.path.0.weight=2`. A key that excludes one in the file (`train.max_steps` and
  `train.epochs`, `data.eval_path` and `data.eval_split`) puts the file's out of force.
- A plugin is chosen by its name, `optimizer: adamw`, or by name and options, `optimizer: {name: adamw, lr: 1e-4}`.
  Where there is a default, options alone change it: `optimizer: {lr: 1e-4}`.
- Unknown keys, wrong types and conflicts are errors that give file, line and the nearest valid key.
- Text that YAML reads as something else (`off`, `010`, `1e5`) needs quotes.
"""
_FILES = "file \\| list of files"


def reference_markdown(registry: Plugins) -> str:
    """Markdown: the keys of each section with type, default and meaning, then the plugins of each choice."""
    parts = [_HEADER, "## Top level", _table(_lines(RunConfig, ""))]
    for name, section in sections().items():
        parts += [f"## {name}", str(RunConfig.model_fields[name].description), _table(_lines(section, f"{name}."))]
    parts += [
        "### A data file",
        "An entry of `data.path` or `data.eval_path`.",
        _table(_lines(DataFile, "data.path.*.")),
    ]
    for kind, places in _places_by_kind().items():
        title = kind.replace("_", " ").capitalize()
        parts += [f"## {title}", "Chosen by " + ", ".join(f"`{place}`" for place in places) + "."]
        for provided in registry.all(kind):
            record = provided.record
            lines = describe_options(record.options)
            parts += [f"### `{record.name}`", record.summary, _table(lines) if lines else "No options."]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _places_by_kind() -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for place, kind in CHOICES.items():
        places.setdefault(kind, []).append(place)
    return places


def _lines(model: type[BaseModel], prefix: str) -> Iterator[OptionLine]:
    """The keys of a section; a section inside it has its own table."""
    for name, field in model.model_fields.items():
        if prefix == "" and name in sections():
            continue
        place = prefix + name
        kind = CHOICES.get(place) or CHOICES.get(f"{place}.*")
        text, default = field_type(field), default_text(field)
        if kind is not None:
            text = f"list of {kind}" if place not in CHOICES else f"one of the {kind.replace('_', ' ')}"
            default = _choice_default(name, field.default) if not field.is_required() else default
        elif place in ("data.path", "data.eval_path"):
            text = _FILES if field.is_required() else f"{_FILES} \\| null"
        yield OptionLine(name, text, default, field.description or "")


def _choice_default(name: str, default: Any) -> str:
    if isinstance(default, list):
        return "[" + ", ".join(choice.name for choice in default) + "]"
    return default.name if default is not None else default_name((name,)) or "null"


def _table(lines: Any) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for line in lines:
        cells = (f"`{line.name}`", _cell(line.type), f"`{_cell(line.default)}`", _cell(line.description))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.replace("\\|", "|").replace("|", "\\|").split())
