"""Which plugins a process may load: what the environment and the command line say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bumblecore_core.errors import ConfigError, one

NO_PLUGINS = "BUMBLE_NO_PLUGINS"
ALLOWED = "BUMBLE_PLUGINS"
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


@dataclass(frozen=True)
class PluginSwitches:
    """`builtins_only`: no installed third-party plugin is loaded. `allow`: only third-party plugins whose entry point
    or distribution is named here are (None: all). `modules`: local modules that are loaded whatever the other two say,
    because the user named them one by one."""

    builtins_only: bool = False
    allow: tuple[str, ...] | None = None
    modules: tuple[str, ...] = ()

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, *, no_plugins: bool = False, modules: Sequence[str] = ()
    ) -> PluginSwitches:
        """The switches of `BUMBLE_NO_PLUGINS` and `BUMBLE_PLUGINS` (an empty value is as if it were not set), with
        `--no-plugins` and `-p` from the command line added. Raises `ConfigError` BC038 for a value that is no switch.
        """
        environ = os.environ if environ is None else environ
        value = environ.get(NO_PLUGINS, "").strip().lower()
        if value not in _TRUE | _FALSE:
            raise one(ConfigError, "BC038", "the value is neither 0 nor 1", "Set it to 1 or unset it", field=NO_PLUGINS)
        names = tuple(name.strip() for name in environ.get(ALLOWED, "").split(",") if name.strip())
        return cls(builtins_only=no_plugins or value in _TRUE, allow=names or None, modules=tuple(modules))

    def describe(self) -> list[str]:
        """The switches that are on, as a user set them."""
        lines = [f"{NO_PLUGINS}=1 or --no-plugins: built-ins only"] if self.builtins_only else []
        lines += [f"{ALLOWED}: {', '.join(self.allow)}"] if self.allow is not None else []
        return lines + [f"-p {module}" for module in self.modules]
