"""Packages that a run needs: installed, and in a supported version."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata, util
from typing import TYPE_CHECKING

from bumblecore_core.errors import PluginError, RunError, one

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

MODEL_LIBRARIES = ("torch", "transformers", "safetensors", "accelerate")
"""What loads models. Older versions can load wrong weights without an error."""


def require_package(module: str, *, extra: str, field: str) -> None:
    """Raises `PluginError` BC071 where the top-level `module` is not installed, without importing anything.

    `extra`: the extra of bumblecore that brings it; `field`: the config key that asked for it. A mere folder of that
    name on the path (wandb makes one called `wandb` in the working directory) is no package.
    """
    found = util.find_spec(module)
    if found is None or found.origin is None:
        problem, fix = f"the package '{module}' is not installed", f"Install it: pip install 'bumblecore[{extra}]'"
        raise one(PluginError, "BC071", problem, fix, field=field)


def require_supported(*names: str, field: str = "") -> None:
    """Raises `RunError` BC094 if an installed library has a version outside the range that bumblecore requires.

    pip checks the range when it installs bumblecore, but not when another package changes the library afterwards.
    `field`: the config key that needs the library.
    """
    for name in names:
        installed, supported = distribution_version(name), supported_versions().get(name)
        if installed is None or supported is None:
            continue
        # a development version or release candidate within the range is accepted
        if not supported.contains(installed, prereleases=True):
            problem = f"{name} {installed} is installed, and bumblecore requires {name} {supported}"
            raise one(
                RunError, "BC094", problem, f"Install a supported version: pip install '{name}{supported}'", field=field
            )


@cache
def distribution_version(name: str) -> str | None:
    """The version of a distribution, or `None` where it is not installed. Read once per process."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def supported_versions() -> Mapping[str, SpecifierSet]:
    """The version range of each required library, from the metadata of the installed bumblecore (pyproject.toml)."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("bumblecore") or []
    except metadata.PackageNotFoundError:
        return {}
    found = map(Requirement, lines)
    return {each.name: each.specifier for each in found if each.marker is None or each.marker.evaluate({"extra": ""})}
