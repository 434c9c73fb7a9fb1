"""Names the plugin that is at fault: the one whose code raised, or that built or returned what its contract forbids."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import BumbleError, PluginError, one
from bumblecore_core.records import Record
from bumblecore_core.registry import singular
from bumblecore_core.registry.collect import one_line

BUILTIN = "bumblecore_plugins"
CORE = "bumblecore_core"
LIBRARY = "bumblecore_core.toolkit"  # building blocks that plugins call: an error in there is its caller's
TRACEBACK = "BUMBLE_TRACEBACK=1 shows where it came from"


@dataclass(frozen=True)
class Plugin:
    """A record as messages name it."""

    kind: str
    """The record class's `kind`, such as `losses`."""
    name: str
    """The record's name."""
    module: str
    """The Python module that defines the record's `build` or `load`."""

    @classmethod
    def of(cls, record: Record) -> Plugin:
        """The plugin behind a record."""
        function: Any = getattr(record, "build", None) or getattr(record, "load", None)
        function = getattr(function, "func", function)  # a functools.partial
        module = getattr(function, "__module__", None) or type(function).__module__
        return cls(record.kind, record.name, module)

    def __str__(self) -> str:
        return f"the {singular(self.kind)} '{self.name}' (module {self.module})"

    @property
    def field(self) -> str:
        """Where an error of it is placed."""
        return f"{self.kind}.{self.name}"

    @property
    def package(self) -> str:
        """The package whose modules are this plugin's own: of the built-ins, which share one, that of their kind. Empty
        where a record names a building block of the core, whose frames say nothing about this plugin."""
        parts = self.module.split(".")
        if parts[0] == CORE:
            return ""
        return ".".join(parts[:2] if parts[0] == BUILTIN else parts[:1])

    @property
    def another(self) -> str:
        """What a user can do about it."""
        return f"choose another {singular(self.kind)}, or report this to its author"


@dataclass(frozen=True, kw_only=True)
class RunPlugins:
    """The plugins of a run that compute something in each step."""

    stage: Plugin
    loss: Plugin
    optimizer: Plugin
    scheduler: Plugin
    engine: Plugin
    adapter: Plugin | None

    @classmethod
    def of(cls, resolved: ResolvedRun) -> RunPlugins:
        """Those that a configuration has chosen."""
        return cls(
            stage=Plugin.of(resolved.stage.record),
            loss=Plugin.of(resolved.loss.record),
            optimizer=Plugin.of(resolved.optimizer.record),
            scheduler=Plugin.of(resolved.scheduler.record),
            engine=Plugin.of(resolved.engine.record),
            adapter=None if resolved.adapter is None else Plugin.of(resolved.adapter.record),
        )

    def __iter__(self) -> Iterator[Plugin]:
        known = (self.loss, self.optimizer, self.scheduler, self.adapter, self.stage, self.engine)
        return (plugin for plugin in known if plugin is not None)


@contextmanager
def blamed(plugin: Plugin) -> Iterator[None]:
    """Turns whatever plugin code raises inside into `PluginError` BC060 with the plugin's name and the place.

    `BumbleError`s pass, since they say it better, and so does running out of memory, which is nobody's defect. A plugin
    that exits is one that raised: otherwise a run would end with exit code 0 and nothing trained.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if passes(error):
            raise
        raise raised(plugin, error) from error


def passes(error: BaseException) -> bool:
    """Whether an exception is not turned into one that names a plugin."""
    return isinstance(error, BumbleError | MemoryError) or type(error).__name__ == "OutOfMemoryError"


def raised(plugin: Plugin, error: BaseException) -> BumbleError:
    """BC060 for an exception in a plugin's code."""
    fix = f"{plugin.another[0].upper()}{plugin.another[1:]}; {TRACEBACK}"
    problem = f"{plugin} raised {one_line(error)} ({place_of(error)})"
    return one(PluginError, "BC060", problem, fix, field=plugin.field)


def breach(plugin: Plugin, fault: str, wants: str, *, code: str = "BC060", place: str = "") -> BumbleError:
    """The error of a plugin that built or returned what its contract forbids. `fault`: what it did, as a verb phrase;
    `wants`: what the contract wants, as a sentence."""
    return one(PluginError, code, f"{plugin} {fault}", f"{wants}; {plugin.another}", place=place, field=plugin.field)


def place_of(error: BaseException) -> str:
    """`file:line` where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "no traceback"


def at_fault(error: BaseException, plugins: Sequence[Plugin]) -> Plugin | None:
    """The plugin whose code was running when `error` was raised: the innermost frame decides that is one of a plugin's
    or of the core's; frames of libraries are their callers'. None where that is the core."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__", ""))
        for plugin in plugins:
            if _inside(module, plugin.package):
                return plugin
        if _inside(module, CORE) and not _inside(module, LIBRARY):
            return None
    return None


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
