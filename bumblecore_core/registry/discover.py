"""What is installed, told from distribution metadata alone: no plugin is imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Literal

from bumblecore_core.errors import Problem, did_you_mean
from bumblecore_core.hookspecs import ENTRY_POINT_GROUP
from bumblecore_core.registry.switches import ALLOWED, PluginSwitches

BUILTIN_DISTRIBUTION = "bumblecore"
LOCAL_DISTRIBUTION = "(local)"
Status = Literal["found", "loaded", "failed", "refused", "off"]


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """Where a plugin comes from and how it fared. `name`: its entry point's (for a local module: the module's).

    `status`: `found` (not imported), `loaded`, `failed` (its import or a hook raised; remembered), `refused` (it breaks
    the contract, which is fatal) or `off` (by a switch). `code` and `error`: why, in one line, for `failed` and
    `refused`.
    """

    name: str
    distribution: str
    version: str
    module: str
    status: Status = "found"
    code: str = ""
    error: str = ""

    @property
    def builtin(self) -> bool:
        """Whether BumbleCore's own distribution provides it."""
        return self.distribution == BUILTIN_DISTRIBUTION

    @property
    def local(self) -> bool:
        """Whether it is a module named by `-p`, not an installed distribution."""
        return self.distribution == LOCAL_DISTRIBUTION

    @property
    def origin(self) -> str:
        """`distribution version (module)`, as messages name a plugin."""
        return f"{self.distribution} {self.version} ({self.module})".replace("  ", " ")


def discover(switches: PluginSwitches) -> tuple[list[PluginInfo], list[Problem]]:
    """Built-ins first, then third-party plugins and local modules, each group by name; and a BC056 problem for every
    name of the allow-list that nothing installed has."""
    names = cache(_name_and_version)  # each look-up reads and parses the distribution's metadata file
    installed = [_info(point, *names(point.dist)) for point in entry_points(group=ENTRY_POINT_GROUP)]
    unique = {(info.distribution, info.name): info for info in installed}
    plugins = [_switched(info, switches) for info in unique.values()]
    plugins += [
        PluginInfo(name=module, distribution=LOCAL_DISTRIBUTION, version="", module=module)
        for module in dict.fromkeys(switches.modules)
    ]
    plugins.sort(key=lambda info: (not info.builtin, info.local, info.name, info.distribution))
    return plugins, _unknown_allowed(plugins, switches)


def normalized(name: str) -> str:
    """A distribution or entry-point name with case and separators folded away, as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name_and_version(distribution: Distribution | None) -> tuple[str, str]:
    return (normalized(distribution.name), distribution.version) if distribution else ("(unknown)", "")


def _info(point: EntryPoint, distribution: str, version: str) -> PluginInfo:
    return PluginInfo(name=point.name, distribution=distribution, version=version, module=point.value)


def _switched(info: PluginInfo, switches: PluginSwitches) -> PluginInfo:
    if info.builtin:
        return info
    named = {normalized(info.name), info.distribution}
    allowed = switches.allow is None or named & {normalized(name) for name in switches.allow}
    if switches.builtins_only or not allowed:
        return PluginInfo(**{**vars(info), "status": "off"})
    return info


def _unknown_allowed(plugins: list[PluginInfo], switches: PluginSwitches) -> list[Problem]:
    if switches.builtins_only or switches.allow is None:
        return []
    known = {normalized(info.name) for info in plugins} | {info.distribution for info in plugins if not info.local}
    return [
        Problem(
            code="BC056",
            field=ALLOWED,
            problem=f"no installed plugin or distribution is called '{name}'",
            fix=f"Take it off the list or install it; {did_you_mean(normalized(name), known)}",
        )
        for name in switches.allow
        if normalized(name) not in known
    ]
