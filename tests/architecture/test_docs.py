"""The pages for plugin authors are true: their snippets run, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from architecture.repository import ROOT, code_blocks, files, name
from bumblecore_core import hookspecs
from bumblecore_core.errors import CODES
from bumblecore_core.records import RECORDS
from bumblecore_core.registry import PluginSwitches, load_registry, singular

GUIDE = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.fixture
def plugin(tmp_path):
    for title, text in code_blocks(GUIDE).items():
        (tmp_path / title).write_text(text, encoding="utf-8")
    return tmp_path


def in_directory(directory, *command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(directory), "BUMBLE_NO_PLUGINS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=directory, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_guides_tests_pass(plugin):
    done = in_directory(plugin, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bumble_focal.py")
    assert "2 passed" in done.stdout


def test_the_guides_module_loads_without_packaging(plugin):
    done = in_directory(plugin, "-m", "bumblecore_core", "-p", "bumble_focal", "plugins", "show", "loss", "focal")
    assert "gamma: float ≥ 0, default 2.0" in done.stdout


def test_the_guides_package_metadata_names_the_module(plugin):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    (module,) = project["entry-points"][hookspecs.ENTRY_POINT_GROUP].values()
    spec = importlib.util.spec_from_file_location(module, plugin / f"{module}.py")
    assert spec is not None
    assert (plugin / f"{module}.py").is_file()
    assert len((plugin / "pyproject.toml").read_text().splitlines()) <= 10


@pytest.mark.parametrize("path", list(files(".md")), ids=name)
def test_links_lead_to_files(path):
    missing = [
        target
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists() and " " not in target
    ]
    assert missing == []


@pytest.fixture
def generate():
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_marked_block_is_filled_and_nothing_else_is_touched(generate):
    text = "before\n<!-- x:start -->\nold\n<!-- x:end -->\nafter\n<!-- y:start -->\nkept\n<!-- y:end -->\n"
    once = generate.filled(text, "x", "new")
    assert once == text.replace("old", "new")
    assert generate.filled(once, "x", "new") == once


def test_stale_pages_are_found_and_written(generate, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "pages", lambda registry: {page: "text\n"})
    assert generate.main(["--check"]) == 1
    assert not page.exists()
    assert generate.main([]) == 0
    assert page.read_text() == "text\n"
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr().out == "stale: page.md\nwrote: page.md\n"


def test_the_builtin_table_holds_every_builtin(generate):
    registry = load_registry(PluginSwitches(builtins_only=True))
    block = generate.builtin_table(registry)
    for cls in RECORDS:
        for item in registry.all(cls.kind):
            assert f"| {singular(cls.kind)} | `{item.record.name}` |" in block


def test_pages_name_only_codes_that_exist():
    for path in files(".md"):
        named = set(re.findall(r"\bBC\d{3}\b", path.read_text(encoding="utf-8")))
        assert named <= set(CODES), name(path)
