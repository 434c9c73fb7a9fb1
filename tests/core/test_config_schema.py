"""The JSON Schema, the generated reference and the starter: all from one schema and the installed plugins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from config_records import INFO, MINIMAL, make_registry
from pydantic import ConfigDict

from bumblecore_core.cli.config import config as config_group
from bumblecore_core.cli.root import AppContext
from bumblecore_core.config.json_schema import config_schema
from bumblecore_core.config.reference import reference_markdown
from bumblecore_core.config.resolve import load_run
from bumblecore_core.config.schema import RunConfig
from bumblecore_core.config.shape import CHOICES, sections
from bumblecore_core.config.starter import starter_yaml
from bumblecore_core.config.yaml import dump, parse
from bumblecore_core.errors import BumbleError, ConfigError, PluginError
from bumblecore_core.records import LoggerRecord, Options
from bumblecore_core.registry import PluginSwitches, Provided, Registry, load_registry

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
    assert "`[progress, log_file, metrics_json]`" in text


# --- the starter


@pytest.mark.parametrize("stage", ["sft", "pretrain", "dpo", "odd"])
def test_the_starter_resolves_for_every_stage(tmp_path: Path, stage: str):
    text = starter_yaml(stage, REGISTRY)
    assert text.startswith("# yaml-language-server: $schema=bumble.schema.json\n")
    assert max(map(len, text.splitlines())) <= 120
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    run = load_run(tmp_path / "run.yaml", (), REGISTRY)
    assert run.stage.name == stage
    assert run.config.output_dir == f"runs/{stage}"


def test_the_starter_with_all_comments_removed_is_the_same_run(tmp_path: Path):
    """What a comment shows as a key is a key, at the right depth, and its value is the default."""
    text = starter_yaml("sft", REGISTRY)
    whole = re.sub(r"^# (loss|adapter|loggers): ", r"\1: ", text, flags=re.M)
    whole = re.sub(r"^#   (\w+: )", r"  \1", whole, flags=re.M)
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(whole.replace("  max_steps: null\n", ""), encoding="utf-8")
    plain = load_run(tmp_path / "run.yaml", (), REGISTRY)
    full = load_run(tmp_path / "whole.yaml", (), REGISTRY)
    assert full.to_dict() == plain.to_dict()
    written = parse(whole, place=str).data
    for name, section in sections().items():
        assert set(written[name]) == set(section.model_fields)
    assert set(written) == set(RunConfig.model_fields)


def test_the_starter_of_an_unknown_stage():
    with pytest.raises(PluginError, match=r"BC056: .*did you mean 'sft'"):
        starter_yaml("stf", REGISTRY)


BUILTINS = load_registry(PluginSwitches(builtins_only=True))


@pytest.mark.parametrize("kind", ["stages", "schedulers", "optimizers", "data_formats", "loggers"])
def test_builtin_plugins_survive_being_written_and_read(tmp_path: Path, kind: str):
    """Each built-in, chosen by name: its resolved config is a config again, and resolves to the same run."""
    keys = {"stages": "stage", "schedulers": "scheduler", "optimizers": "optimizer", "loggers": "loggers.0"}
    (tmp_path / "run.yaml").write_text(MINIMAL)
    assert BUILTINS.names(kind)
    for item in BUILTINS.all(kind):
        record = item.record
        needs_data = ["data.eval_split=0.1"] if getattr(record, "needs_metric", False) else []
        chosen = f"{keys.get(kind, 'data.format')}={record.name}"
        first = load_run(tmp_path / "run.yaml", [chosen, *needs_data], BUILTINS)
        (tmp_path / "again.yaml").write_text(dump(first.to_dict()))
        assert load_run(tmp_path / "again.yaml", (), BUILTINS).to_dict() == first.to_dict()


# --- the commands


class App(AppContext):
    def registry(self) -> Registry:
        return REGISTRY


def bumble_config(*args: str):
    @click.group()
    @click.pass_context
    def root(ctx: click.Context) -> None:
        ctx.obj = App(PluginSwitches())

    root.add_command(config_group)
    return CliRunner().invoke(root, ["config", *args])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(MINIMAL)
    return tmp_path


def test_config_schema(folder: Path):
    assert json.loads(bumble_config("schema").stdout) == SCHEMA
    for _ in range(2):
        assert bumble_config("schema", "-o", "s.json").exit_code == 0
    assert json.loads((folder / "s.json").read_text()) == SCHEMA


def test_config_show(folder: Path):
    lines = bumble_config("show", "run.yaml", "--set", "optimizer.lr=1e-5").stdout.splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert re.fullmatch(r"optimizer.lr +1e-05 +command line", rows["optimizer.lr"])
    assert re.fullmatch(r"model.path +\"base\" +run.yaml:3", rows["model.path"])
    assert re.fullmatch(r"train.epochs +1.0 +default", rows["train.epochs"])


def test_config_show_json(folder: Path):
    shown = json.loads(bumble_config("show", "run.yaml", "--json").stdout)
    assert shown["config"] == load_run("run.yaml", (), REGISTRY).to_dict()
    assert shown["origins"]["model.path"] == "run.yaml:3"


def test_config_show_passes_errors_on(folder: Path):
    result = bumble_config("show", "run.yaml", "--set", "train.epohcs=1")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.problems[0].code == "BC034"


def test_config_init_never_overwrites(folder: Path):
    assert bumble_config("init", "sft").stdout == starter_yaml("sft", REGISTRY)
    assert bumble_config("init", "sft", "-o", "new.yaml").exit_code == 0
    assert (folder / "new.yaml").read_text() == starter_yaml("sft", REGISTRY)
    again = bumble_config("init", "pretrain", "-o", "new.yaml")
    assert isinstance(again.exception, ConfigError)
    assert again.exception.problems[0].code == "BC069"
    assert (folder / "new.yaml").read_text() == starter_yaml("sft", REGISTRY)


def test_output_that_cannot_be_written(folder: Path):
    result = bumble_config("schema", "-o", "nowhere/s.json")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.problems[0].code == "BC042"


def test_the_schema_command_does_not_import_torch():
    code = (
        "import sys\nfrom bumblecore_core.cli import bumble\n"
        "bumble.main(['config', 'schema', '-o', sys.argv[1]], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'peft'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
