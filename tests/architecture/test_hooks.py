"""The manual for plugin authors is true: every hook's example runs, and its records pass the registry."""

from __future__ import annotations

import ast
import inspect
import re
import types
from dataclasses import fields

import pytest

from architecture.repository import ROOT
from bumblecore_core import hookspecs
from bumblecore_core.records import RECORDS
from bumblecore_core.registry.lookup import singular
from bumblecore_core.registry.validate import HOOKS
from bumblecore_core.testing import check_plugin

LIGHT = {"bumblecore_core", "pydantic", "click", "contextlib"}
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def example(hook: str) -> str:
    """The Python code in a hook's docstring."""
    found = EXAMPLE.findall(inspect.getdoc(getattr(hookspecs, hook)) or "")
    assert len(found) == 1, f"{hook} needs exactly one example"
    return found[0]


def test_records_and_hook_specs_are_the_same_ones():
    specified = {name for name in vars(hookspecs) if name.startswith("bumble_")}
    assert specified == set(HOOKS) == set(hookspecs.HOOK_OF_KIND.values())
    assert len(HOOKS) == len(RECORDS)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_takes_nothing_and_says_what_it_is_for(hook: str):
    assert not inspect.signature(getattr(hookspecs, hook)).parameters
    assert len((inspect.getdoc(getattr(hookspecs, hook)) or "").splitlines()[0]) > 20


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hooks_example_passes_the_registry(hook: str):
    module = types.ModuleType("example")
    exec(compile(example(hook), hook, "exec"), vars(module))
    records = check_plugin(module)
    assert {type(record) for record in records} == {HOOKS[hook]}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hooks_example_imports_only_light_modules_at_its_top(hook: str):
    for node in ast.parse(example(hook)).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= LIGHT
        assert not any(name.startswith("bumblecore_core.toolkit") for name in names)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_used_by_a_test(hook: str):
    elsewhere = [path for path in (ROOT / "tests").rglob("*.py") if "architecture" not in path.parts]
    assert any(f"def {hook}(" in path.read_text(encoding="utf-8") for path in elsewhere)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_records_docstring_names_its_fields(record):
    own = {field.name for field in fields(record)} - {"name", "summary", "options"}
    doc = inspect.getdoc(record) or ""
    assert not [field for field in own if field not in doc], record.__name__


def test_kinds_have_singulars():
    assert [singular(record.kind) for record in RECORDS] == [
        "stage",
        "loss",
        "optimizer",
        "scheduler",
        "data format",
        "adapter",
        "engine",
        "logger",
        "attention",
        "command",
    ]
