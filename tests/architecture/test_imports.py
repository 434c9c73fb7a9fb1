"""Who imports whom, and what the command line's light paths must not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from architecture.repository import ROOT

HEAVY = ("torch", "transformers", "tokenizers", "peft", "matplotlib", "tensorboard", "pyarrow")
PROBE = """
import json, sys
from bumblecore_core.cli import main
try:
    main({arguments!r})
    code = 0
except SystemExit as stop:
    code = stop.code or 0
sys.stdout.flush()
print()
print(json.dumps({{"code": code, "heavy": [name for name in {heavy!r} if name in sys.modules]}}))
"""


def probe(code: str) -> Any:
    """What a fresh process without third-party plugins prints as its last line."""
    environ = {**os.environ, "BUMBLE_NO_PLUGINS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "run --help",
        "plan --help",
        "config --help",
        "config schema",
        "config init sft",
        "plugins --help",
        "plugins list",
        "plugins list --load --json",
        "plugins show logger progress",
    ],
)
def test_light_paths_import_nothing_heavy(arguments: str):
    assert probe(PROBE.format(arguments=arguments.split(), heavy=HEAVY)) == {"code": 0, "heavy": []}


def test_the_facade_imports_nothing_heavy():
    code = "import bumblecore_core, bumblecore_core.testing, json, sys\n"
    code += f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    assert probe(code) == []


def test_the_probe_sees_a_heavy_import():
    assert probe(f"import yaml\n{PROBE.format(arguments=['--version'], heavy=('yaml',))}")["heavy"] == ["yaml"]


def test_import_contracts_hold():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command([])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
