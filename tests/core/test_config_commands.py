"""`bumble config`: schema, show, init."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from config_records import MINIMAL, make_registry

from bumblecore_core.cli.config import config as config_group
from bumblecore_core.cli.root import AppContext
from bumblecore_core.config.json_schema import config_schema
from bumblecore_core.config.resolve import load_run
from bumblecore_core.config.starter import starter_yaml
from bumblecore_core.errors import ConfigError, RunError
from bumblecore_core.registry import PluginSwitches, Registry

REGISTRY = make_registry()
SCHEMA = config_schema(REGISTRY)


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


def test_an_existing_file_is_replaced_only_with_force(folder: Path):
    assert bumble_config("init", "sft").stdout == starter_yaml("sft", REGISTRY)
    assert bumble_config("init", "sft", "-o", "new.yaml").exit_code == 0
    assert (folder / "new.yaml").read_text() == starter_yaml("sft", REGISTRY)
    for again in (bumble_config("init", "pretrain", "-o", "new.yaml"), bumble_config("schema", "-o", "new.yaml")):
        assert isinstance(again.exception, RunError)
        assert str(again.exception).startswith("BC069 new.yaml --output: the output exists. Choose another path")
    assert (folder / "new.yaml").read_text() == starter_yaml("sft", REGISTRY)
    assert bumble_config("init", "pretrain", "-o", "new.yaml", "--force").exit_code == 0
    assert (folder / "new.yaml").read_text() == starter_yaml("pretrain", REGISTRY)
    assert bumble_config("schema", "-o", "new.yaml", "--force").exit_code == 0
    assert json.loads((folder / "new.yaml").read_text()) == SCHEMA


def test_output_that_cannot_be_written(folder: Path):
    result = bumble_config("schema", "-o", "nowhere/s.json")
    assert isinstance(result.exception, RunError)
    assert result.exception.problems[0].code == "BC042"


def test_the_schema_command_does_not_import_torch():
    code = (
        "import sys\nfrom bumblecore_core.cli import bumble\n"
        "bumble.main(['config', 'schema', '-o', sys.argv[1]], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'peft'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
