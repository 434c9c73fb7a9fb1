"""Loggers whose package is not installed say so in one line; none is imported before a run has chosen it."""

import importlib.util
import subprocess
import sys

import pytest

from bumblecore_core.cli import main
from bumblecore_core.errors import PluginError
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.toolkit.packages import require_package
from workbench import pretrain_settings, workbench, write_config


def hide(monkeypatch, *modules):
    """Makes the import system say that `modules` are not there."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if name in modules else found(name, *at))


def build(name, **options):
    record = load_registry(PluginSwitches(builtins_only=True)).get("loggers", name)
    return record.build(options=record.options(**options))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_says_which_package_is_missing(tmp_path, monkeypatch, capsys, name):
    bench = workbench(tmp_path)
    config = write_config(tmp_path / "run.yaml", **pretrain_settings(bench, max_steps=1), loggers=[name])
    hide(monkeypatch, name)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config)])
    assert ended.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "BC071" in line]
    assert f"BC071 loggers.{name}: the package '{name}' is not installed." in line
    assert f"pip install 'bumblecore[{name}]'" in line


def test_mlflow_needs_a_database_driver_for_its_own_store_alone(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    hide(monkeypatch, "sqlalchemy")
    with pytest.raises(PluginError, match=r"BC071 loggers\.mlflow: the package 'sqlalchemy' .*bumblecore\[mlflow\]"):
        build("mlflow")
    assert build("mlflow", tracking_uri="http://localhost:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    assert build("mlflow")


def test_a_folder_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="BC071"):
        require_package("only_a_folder", extra="x", field="loggers.x")
    (tmp_path / "only_a_folder" / "__init__.py").touch()
    importlib.invalidate_caches()
    require_package("only_a_folder", extra="x", field="loggers.x")


def test_listing_plugins_imports_no_loggers_package():
    code = (
        "import sys; from bumblecore_core.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print({'torch', 'wandb', 'mlflow', 'tensorboard', 'matplotlib'} & sys.modules.keys())"
    )
    for arguments in (["--help"], ["plugins", "list"], ["config", "schema"]):
        command = [sys.executable, "-c", code, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ended.stdout.endswith("set()\n"), arguments
