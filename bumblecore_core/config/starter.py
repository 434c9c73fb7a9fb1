"""A commented config to start from, for any registered stage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from textwrap import wrap
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from bumblecore_core.config.resolve import Plugins
from bumblecore_core.config.schema import PluginChoice, RunConfig
from bumblecore_core.config.shape import sections
from bumblecore_core.config.yaml import parse
from bumblecore_core.errors import PluginError

SCHEMA_FILE = "bumble.schema.json"
_OPTION_KINDS = {"optimizer": "optimizers", "scheduler": "schedulers", "engine": "engines"}
_WIDTH = 100


def starter_yaml(stage: str, registry: Plugins) -> str:
    """YAML for `stage`: what must be set is there, what may be set is a comment with its default and meaning.

    Loads as a valid run once its paths exist. Raises `PluginError` BC056 for a stage that is not installed.
    """
    record = registry.get("stages", stage)
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# For completion and checks in an editor: bumble config schema -o {SCHEMA_FILE}",
        "# The values of commented keys are their defaults; to change one, remove its `# `.",
        "",
    ]
    lines += [*_comment(record.summary, ""), *_choice("stage", record), ""]
    model = "path/to/model  # a directory with a config.json" if record.model_from == "config" else "path/to/model"
    values = {"model": {"path": model}, "data": {"path": "path/to/data.jsonl"}}
    for name, field in RunConfig.model_fields.items():
        if name == "stage":
            continue
        lines += _comment(field.description, "")
        if name in sections():
            lines += _section(name, sections()[name], values.get(name, {}))
        elif name in _OPTION_KINDS:
            lines += _default_choice(name, _OPTION_KINDS[name], field, registry)
        elif name == "loss":
            lines += [*_names("losses", _fitting(registry, record)), f"# loss: {record.default_loss}"]
        elif name == "adapter":
            lines += [*_names("adapters", _all_names("adapters", registry)), "# adapter: null"]
        elif name == "loggers":
            default = ", ".join(choice.name for choice in field.default)
            lines += [*_names("loggers", _all_names("loggers", registry)), f"# loggers: [{default}]"]
        else:
            lines += [f"{name}: runs/{stage}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, section: type[BaseModel], values: dict[str, str]) -> list[str]:
    """A section; one whose keys are all comments is empty, which is the same as all of its defaults."""
    lines = [f"{name}:"]
    for key, field in section.model_fields.items():
        lines += _comment(field.description, "  ")
        lines.append(f"  {key}: {values[key]}" if key in values else f"#   {key}: {_default(field)}")
    return lines


def _default_choice(name: str, kind: str, field: FieldInfo, registry: Plugins) -> list[str]:
    default: PluginChoice = field.default
    others = _names(kind, _all_names(kind, registry))
    try:
        record = registry.get(kind, default.name)
    except PluginError:
        return [*others, f"# {name}: {default.name}"]
    return [*others, *_choice(name, record)]


def _choice(key: str, record: Any) -> list[str]:
    """A plugin with its options: required ones with a value of the right type, the others as comments."""
    fields = record.options.model_fields
    if not fields:
        return [f"{key}: {record.name}"]
    lines = [f"{key}:", f"  name: {record.name}"]
    schema = record.options.model_json_schema()
    for name, field in fields.items():
        written = field.alias or name
        lines += _comment(field.description, "  ")
        if field.is_required():
            value = _example(schema["properties"][written], schema.get("$defs", {}))
            lines.append(f"  {written}: {json.dumps(value, ensure_ascii=False)}")
        else:
            lines.append(f"#   {written}: {_default(field)}")
    return lines


def _default(field: FieldInfo) -> str:
    """The default on one line, as JSON, which is YAML too."""
    if field.default_factory is not None:
        return "…"
    value = field.get_default()
    if isinstance(value, PluginChoice):
        return value.name
    plain = to_jsonable_python(value, fallback=str)
    bare = isinstance(plain, str) and plain.isidentifier() and parse(plain, place=str).data == plain
    return plain if bare else json.dumps(plain, ensure_ascii=False)


def _example(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """A value that `schema` (of one option, as pydantic writes it) accepts, for options without a default."""
    if "$ref" in schema:
        return _example(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if "examples" in schema:
        return schema["examples"][0]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], definitions)
    kind = schema.get("type")
    if kind == "object":
        required = schema.get("required", [])
        return {key: _example(schema["properties"][key], definitions) for key in required}
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})] * schema.get("minItems", 0)
        return [_example(item, definitions) for item in items]
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    return {"boolean": False, "null": None}.get(str(kind), "x" * max(1, schema.get("minLength", 1)))


def _number(schema: dict[str, Any], *, whole: bool) -> int | float:
    step = 1 if whole else 0.5
    for candidate in (1, schema.get("minimum"), schema.get("maximum")):
        if candidate is not None and _within(candidate, schema):
            return int(candidate) if whole else float(candidate)
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None and not whole:
        return float((low + high) / 2)
    return low + step if low is not None else high - step if high is not None else 0


def _within(value: float, schema: dict[str, Any]) -> bool:
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    above, below = schema.get("exclusiveMinimum", value - 1), schema.get("exclusiveMaximum", value + 1)
    return bool(low <= value <= high and above < value < below)


def _fitting(registry: Plugins, stage: Any) -> list[str]:
    records = [provided.record for provided in registry.all("losses")]
    return [record.name for record in records if record.loss_kind == stage.loss_kind]


def _all_names(kind: str, registry: Plugins) -> list[str]:
    return [provided.record.name for provided in registry.all(kind)]


def _names(kind: str, names: Iterable[str]) -> list[str]:
    return _comment(f"Installed {kind}: {', '.join(names) or 'none'}.", "")


def _comment(text: str | None, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(" ".join((text or "").split()), _WIDTH)]
