"""Checks of a plugin module and its records, as the registry makes them at start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bumblecore_core.errors import Problem
from bumblecore_core.records import Record
from bumblecore_core.registry import PluginInfo, Provided, record_problems
from bumblecore_core.registry.collect import clashes, run_hooks

HEAVY = ("torch", "transformers", "peft", "matplotlib")


def check_plugin(plugin: Any) -> list[Record]:
    """The records of a module (or object): every hook is called, and what it returns validated as the registry does.

    Raises `AssertionError` with the registry's own lines (BC053 one name twice, BC055 a wrong record, BC058 a misspelt
    hook, BC059 another hook API) or where the plugin has no hook at all; a hook that raises does so as `HookRaised`.
    """
    name = getattr(plugin, "__name__", type(plugin).__name__)
    info = PluginInfo(name=name, distribution="(under test)", version="", module=name)
    records, problems = run_hooks(plugin, info)
    _none(problems + clashes([Provided(record, info) for record in records]))
    assert records, (
        f"{name} provides no record: is each hook marked @hookimpl and called as in bumblecore_core.hookspecs?"
    )
    return records


def check_record(record: Any) -> None:
    """Raises `AssertionError` with one BC055 line for everything that is wrong with a record."""
    _none(record_problems(record))


def check_import_is_light(module: str, *, heavy: Sequence[str] = HEAVY) -> None:
    """Imports `module` in a fresh process and raises `AssertionError` if that imports one of `heavy`: `bumble --help`
    imports every installed plugin, so torch belongs inside `build`."""
    code = f"import sys, {module}; print([name for name in {list(heavy)!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{module} does not import:\n{done.stderr}"
    found = done.stdout.strip().splitlines()[-1]
    assert found == "[]", f"importing {module} imports {found}; import these inside `build`"


def _none(problems: Sequence[Problem]) -> None:
    assert not problems, "\n".join(str(problem) for problem in problems)
