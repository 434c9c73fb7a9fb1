"""Distributions made of a module and metadata alone: what an installed plugin looks like to `importlib.metadata`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GOOD = """
from pydantic import Field

from bumblecore_core import LossRecord, Options, hookimpl


class FocalOptions(Options):
    gamma: float = Field(2.0, ge=0, description="Focus.")


def build(*, options):
    raise RuntimeError("not built by the registry")


@hookimpl
def bumble_losses():
    return [LossRecord(name="focal", summary="Focal loss.", build=build, loss_kind="token", options=FocalOptions)]
"""


class Site:
    """A directory on `sys.path` into which distributions are put."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, distribution: str, source: str, *, version: str = "1.0", entry: str | None = None) -> str:
        """Installs `distribution` with one module and one entry point; returns the module's name."""
        module = distribution.replace("-", "_")
        (self.path / f"{module}.py").write_text(source, encoding="utf-8")
        info = self.path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[bumblecore]\n{entry or distribution} = {module}\n")
        return module


def make_site(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An importable, empty site; the modules imported from it are forgotten afterwards."""
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.delenv("BUMBLE_NO_PLUGINS", raising=False)
    monkeypatch.delenv("BUMBLE_PLUGINS", raising=False)
    before = set(sys.modules)
    yield Site(path)
    for name in set(sys.modules) - before:
        if str(path) in str(getattr(sys.modules[name], "__file__", "") or ""):
            del sys.modules[name]
