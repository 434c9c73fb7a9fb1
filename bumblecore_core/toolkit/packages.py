"""Optional packages: said in one line where a plugin needs one that is not installed."""

from __future__ import annotations

from importlib import util

from bumblecore_core.errors import PluginError, one


def require_package(module: str, *, extra: str, field: str) -> None:
    """Raises `PluginError` BC071 where the top-level `module` is not installed, without importing anything.

    `extra`: the extra of bumblecore that brings it; `field`: the config key that asked for it. A mere folder of that
    name on the path (wandb makes one called `wandb` in the working directory) is no package.
    """
    found = util.find_spec(module)
    if found is None or found.origin is None:
        problem, fix = f"the package '{module}' is not installed", f"Install it: pip install 'bumblecore[{extra}]'"
        raise one(PluginError, "BC071", problem, fix, field=field)
