"""The JSON Schema and the generated reference: both from one schema and the installed plugins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from config_records import INFO, MINIMAL, make_registry
from pydantic import ConfigDict

from bumblecore_core.config.json_schema import config_schema
from bumblecore_core.config.reference import reference_markdown
from bumblecore_core.config.resolve import load_run
from bumblecore_core.config.schema import DEFAULT_LOGGERS
from bumblecore_core.config.shape import CHOICES, sections
from bumblecore_core.config.yaml import dump, parse
from bumblecore_core.errors import BumbleError, PluginError
from bumblecore_core.records import LoggerRecord, Options
from bumblecore_core.registry import Provided, Registry

REGISTRY = make_registry()
SCHEMA = config_schema(REGISTRY)


def accepts(schema: Any, value: Any) -> bool:
    """A plain JSON Schema validator of the keywords that the schema uses; an unknown keyword fails the test."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    for keyword, rule in schema.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        match keyword:
            case "$schema" | "$defs" | "title" | "description" | "default" | "format":
                good = True
            case "$ref":
                good = accepts(SCHEMA["$defs"][rule.removeprefix("#/$defs/")], value)
            case "anyOf":
                good = any(accepts(branch, value) for branch in rule)
            case "type" if rule in ("number", "integer"):
                good = number and (rule == "number" or float(value).is_integer())
            case "type":
                good = isinstance(value, kinds[rule])
            case "enum":
                good = value in rule
            case "const":
                good = value == rule
            case "properties":
                good = not isinstance(value, dict) or all(
                    accepts(rule[key], value[key]) for key in rule if key in value
                )
            case "required":
                good = not isinstance(value, dict) or all(key in value for key in rule)
            case "additionalProperties" if isinstance(rule, bool):
                known = schema.get("properties", {})
                good = rule or not isinstance(value, dict) or all(key in known for key in value)
            case "items":
                start = len(schema.get("prefixItems", []))
                good = not isinstance(value, list) or all(accepts(rule, item) for item in value[start:])
            case "prefixItems":
                good = not isinstance(value, list) or all(map(accepts, rule, value))
            case "minItems" | "maxItems":
                size = len(value) if isinstance(value, list) else rule
                good = size >= rule if keyword == "minItems" else size <= rule
            case "minLength":
                good = not isinstance(value, str) or len(value) >= rule
            case "pattern":
                good = not isinstance(value, str) or re.search(rule, value) is not None
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                compare = {
                    "minimum": "__ge__",
                    "maximum": "__le__",
                    "exclusiveMinimum": "__gt__",
                    "exclusiveMaximum": "__lt__",
                }
                good = not number or getattr(float(value), compare[keyword])(float(rule))
            case _:
                pytest.fail(f"the schema uses {keyword}, which this test cannot check")
        if not good:
            return False
    return True


GOOD = [
    "",
    "optimizer: {name: adamw, lr: 1e-5, betas: [0.9, 0.99], mode: 'off'}\n",
    "optimizer: {lr: 0.1}\nloss: {z_loss: 0.1}\n",
    "adapter: {name: lora, rank: 4, target_modules: [q, v]}\n",
    "adapter: null\nloss: causal_lm_naive\ntrain:\ncheckpoint: {save_last: false}\n",
    "loggers: [progress, {name: tensorboard}]\nscheduler: {name: cosine, warmup_steps: 3}\n",
    "stage: {name: odd, size: 4, label: ab, share: 0.5, inner: {depth: 3}, extra: {a: [1]}}\n",
    "data: {path: [a.json, {path: b.json, format: text, weight: 2}], format: alpaca, eval_split: 0.1}\n",
    "data: {path: {path: b.json, format: {name: auto}}, eval_path: x.json}\nmodel: {path: x, attention: varlen}\n",
    "model: {path: x, router_aux_loss: 1e-2}\n",
    "model: {path: x, router_aux_loss: 'off'}\n",
]
BAD = [
    "trian: {}\n",
    "train: {epoch: 3}\n",
    "train: {epochs: 0}\n",
    "train: {seed: '3'}\n",
    "optimizer: adamm\n",
    "optimizer: {name: adamw, rank: 3}\n",
    "optimizer: {name: sgd, lr: 3}\n",
    "optimizer: null\n",
    "optimizer: {betas: [0.9, 0.9, 0.9]}\n",
    "adapter: {rank: 3}\n",
    "adapter: {name: lora, target_modules: some}\n",
    "loss: dpo\n",
    "loggers: progress\n",
    "stage: odd\n",
    "stage: {name: odd, size: 3, label: ab, share: 0.5}\n",
    "stage: {name: odd, size: 4, label: ab, share: 0.5, inner: {dpeth: 3}}\n",
    "data: {path: []}\n",
    "data: {path: a.json, format: jsn}\n",
    "model: {path: x, attention: varlenn}\n",
    "model: {path: ''}\n",
    "model: {path: x, router_aux_loss: -1}\n",
    "model: {path: x, router_aux_loss: always}\n",
    "model: {path: x, router_aux_loss: true}\n",
    "checkpoint: {max_shard_size: big}\n",
]


def _with(extra: str) -> dict[str, Any]:
    base = parse(MINIMAL, place=str).data
    return {**base, **(parse(extra, place=str).data or {})}


@pytest.mark.parametrize("extra", GOOD)
def test_schema_and_resolution_accept(tmp_path: Path, extra: str):
    data = _with(extra)
    if data["stage"] != "odd":
        (tmp_path / "run.yaml").write_text(dump(data))
        resolved = load_run(tmp_path / "run.yaml", (), REGISTRY)
        assert accepts(SCHEMA, resolved.to_dict())
    assert accepts(SCHEMA, data)


@pytest.mark.parametrize("extra", BAD)
def test_schema_and_resolution_refuse(tmp_path: Path, extra: str):
    data = _with(extra)
    (tmp_path / "run.yaml").write_text(dump(data))
    with pytest.raises(BumbleError):
        load_run(tmp_path / "run.yaml", (), REGISTRY)
    assert not accepts(SCHEMA, data)


def test_everything_in_the_schema_is_described_and_closed():
    for section in ("ModelSection", "DataSection", "DataFile", "TrainSection", "CheckpointSection"):
        definition = SCHEMA["$defs"][section]
        assert definition["additionalProperties"] is False
        assert all(field.get("description") for field in definition["properties"].values()), section
    assert SCHEMA["additionalProperties"] is False
    assert all(field.get("description") for field in SCHEMA["properties"].values())
    for kind in set(CHOICES.values()):
        names, *branches = SCHEMA["$defs"][kind]["anyOf"]
        assert {branch["properties"]["name"]["const"] for branch in branches} >= set(names["enum"])
        assert all(branch["additionalProperties"] is False and branch["description"] for branch in branches)
        described = [field for branch in branches for key, field in branch["properties"].items() if key != "name"]
        assert all(field["description"] for field in described)


def test_every_reference_of_the_schema_resolves():
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(SCHEMA)))
    assert references
    assert references <= set(SCHEMA["$defs"])
    assert SCHEMA["$schema"].endswith("2020-12/schema")


def test_options_without_json_form_name_their_plugin():
    class Callback(Options):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        function: type(print)

    record = LoggerRecord(name="odd_one", summary="Odd.", build=print, options=Callback)
    broken = Registry(
        [*(item for kind in set(CHOICES.values()) for item in REGISTRY.all(kind)), Provided(record, INFO)], []
    )
    with pytest.raises(PluginError, match=r"BC055 .*odd_one"):
        config_schema(broken)


def test_the_reference_names_every_key_plugin_and_option():
    text = reference_markdown(REGISTRY)
    for name, section in sections().items():
        part = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for key, field in section.model_fields.items():
            assert f"| `{key}` |" in part
            assert field.description.split("|")[0] in part
    for kind in set(CHOICES.values()):
        for item in REGISTRY.all(kind):
            assert f"### `{item.record.name}`" in text
            assert all(f"| `{option}` |" in text for option in item.record.options.model_fields)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert widths == {5}
    assert f"`[{', '.join(DEFAULT_LOGGERS)}]`" in text
