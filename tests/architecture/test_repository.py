"""Rules for the repository's own text: sizes, paths, YAML, generated pages."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from architecture.repository import ROOT, files, name
from bumblecore_core.config.resolve import load_run
from bumblecore_core.config.schema import RunConfig
from bumblecore_core.registry import PluginSwitches, load_registry

LONGEST = 300
# Written in pieces, so that this file keeps its own rule.
PLACES = ("(?<![A-Za-z0-9_.])/" + "work/", "/tmp/" + "(bash|venv)", "/ro" + "ot/", "/home/" + "[a-z]")
MACHINE_PATHS = re.compile("|".join(PLACES))
YAML_FILES = list(files(".yaml", ".yml"))
PYTHON_FILES = list(files(".py"))
TEXT_SUFFIXES = (".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jinja", ".txt", ".cfg", ".jsonl", "")


def test_the_listing_finds_this_file():
    assert "tests/architecture/test_repository.py" in {name(path) for path in PYTHON_FILES}


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name)
def test_a_python_file_is_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines < LONGEST


def test_no_text_names_a_machines_paths():
    found = [
        f"{name(path)}:{number}"
        for path in files(*TEXT_SUFFIXES)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert found == []


def test_the_rule_about_paths_can_fail():
    assert MACHINE_PATHS.search("see /" + "work/main")
    assert not MACHINE_PATHS.search("framework/core")


@pytest.mark.parametrize("path", YAML_FILES, ids=name)
def test_yaml_parses(path):
    assert list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


EXAMPLES = [path for path in YAML_FILES if "examples" in path.relative_to(ROOT).parts]


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_an_example_is_a_valid_config(path):
    run = load_run(path, (), load_registry(PluginSwitches(builtins_only=True)))
    assert isinstance(run.config, RunConfig)


def test_generated_pages_are_not_stale():
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + "run: python docs/generate.py"
