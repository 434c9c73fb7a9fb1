"""Imports plugins, runs their hooks once, and makes the registry."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any, cast

import pluggy

from bumblecore_core import hookspecs
from bumblecore_core.errors import PluginError, Problem
from bumblecore_core.records import Record
from bumblecore_core.registry.discover import PluginInfo, discover
from bumblecore_core.registry.lookup import Provided, Registry, singular
from bumblecore_core.registry.switches import PluginSwitches
from bumblecore_core.registry.validate import HOOKS, plugin_problems, result_problems


def load_registry(switches: PluginSwitches | None = None) -> Registry:
    """The registry of all plugins that `switches` (None: the environment's) let in.

    A plugin whose import or hook raises is remembered in `Registry.plugins` and costs only its own names. Raises
    `PluginError` with every breach of the contract at once: BC053 two plugins share a name, BC055 a wrong record, BC058
    a misspelt hook, BC059 another hook API, BC054 a module named by `-p` that does not import, BC056 an unknown name in
    the allow-list.
    """
    switches = PluginSwitches.from_environment() if switches is None else switches
    plugins, problems = discover(switches)
    registry, more = collect(plugins)
    if problems or more:
        raise PluginError([*problems, *more])
    return registry


def collect(plugins: Sequence[PluginInfo]) -> tuple[Registry, list[Problem]]:
    """Loads every plugin that is `found`, and returns the registry with what is fatal (`load_registry` raises it)."""
    manager = new_manager()
    provided: list[Provided] = []
    infos: list[PluginInfo] = []
    problems: list[Problem] = []
    for info in plugins:
        if info.status != "found":
            infos.append(info)
            continue
        loaded, records, breaches = _load(manager, info)
        infos.append(loaded)
        problems += breaches
        provided += [Provided(record, loaded) for record in records]
    return Registry(provided, infos), problems + clashes(provided)


def _load(manager: pluggy.PluginManager, info: PluginInfo) -> tuple[PluginInfo, list[Record], list[Problem]]:
    """The plugin's new status, its records (all of them or none) and its breaches of the contract."""
    try:
        plugin = _import(info)
    except (Exception, SystemExit) as error:
        failed = replace(info, status="failed", code="BC054", error=one_line(error))
        return failed, [], [_import_failed(failed)] if info.local else []
    if manager.is_registered(plugin):  # the same module under a second name, such as `-p` of an installed plugin
        return replace(info, status="loaded"), [], []
    try:
        records, problems = run_hooks(plugin, info, manager)
    except HookRaised as error:
        return replace(info, status="failed", code="BC060", error=str(error)), [], []
    if problems:
        first = problems[0]
        return replace(info, status="refused", code=first.code, error=f"{first.field}: {first.problem}"), [], problems
    return replace(info, status="loaded"), records, []


class HookRaised(Exception):
    """A hook raised: its text names the hook and the error, on one line."""


def run_hooks(
    plugin: Any, info: PluginInfo, manager: pluggy.PluginManager | None = None
) -> tuple[list[Record], list[Problem]]:
    """Calls every hook of one plugin (a module or an object); returns its records and what breaks the contract.
    Hooks are called plugin by plugin, so that every record and error has its origin. Raises `HookRaised`."""
    if problems := plugin_problems(plugin, info):
        return [], problems
    manager = new_manager() if manager is None else manager
    manager.register(plugin, name=f"{info.distribution}:{info.name}")
    manager.check_pending()
    records: list[Record] = []
    for hook in HOOKS:
        caller: pluggy.HookCaller = getattr(manager.hook, hook)
        for implementation in caller.get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            try:
                result = implementation.function()
            except (Exception, SystemExit) as error:
                raise HookRaised(f"its hook {hook} raised {one_line(error)}") from error
            problems += result_problems(result, hook, info)
            if not problems:
                records += cast("list[Record]", result)
    return records, problems


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows BumbleCore's hooks and holds no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _import(info: PluginInfo) -> Any:
    """The object that the entry point names. A local module is looked for in the working directory first, which then
    stays importable (last in line) for what the module imports later."""
    if not info.local:
        return EntryPoint(name=info.name, value=info.module, group=hookspecs.ENTRY_POINT_GROUP).load()
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(info.module)
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _import_failed(info: PluginInfo) -> Problem:
    return Problem(
        code="BC054",
        field=f"-p {info.name}",
        problem=f"the module does not import: {info.error}",
        fix="Give a module's name as an import statement has it, relative to the working directory (`-p my_plugin`)",
    )


def clashes(provided: Sequence[Provided]) -> list[Problem]:
    """A BC053 problem for every kind and name that is provided twice."""
    first: dict[tuple[str, str], Provided] = {}
    problems = []
    for item in provided:
        key = (item.record.kind, item.record.name)
        other = first.setdefault(key, item)
        if other is not item:
            problems.append(clash(item.record, other.plugin.origin, item.plugin.origin))
    return problems


def clash(record: Record, first: str, second: str) -> Problem:
    """BC053: `first` and `second` (origins) both provide `record`'s kind and name."""
    return Problem(
        code="BC053",
        field=f"{record.kind}.{record.name}",
        problem=f"the {singular(record.kind)} '{record.name}' is provided by {first} and by {second}",
        fix="Uninstall one of them, rename one, or leave one out (--no-plugins, BUMBLE_PLUGINS)",
    )


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
