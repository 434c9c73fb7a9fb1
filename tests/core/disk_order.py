"""Records fsync and renames, and what of a renamed file or directory had not reached the disk before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = (".outgoing", ".removing")
"""Ends of the names that something is moved aside to, before it is deleted: nothing counts on what is in there."""


class Disk:
    """`renamed`: names that were renamed into place, in order. `lost`: what a power cut could have taken from them: a
    path that was renamed before it was synced, or whose directory was not synced afterwards."""

    def __init__(self) -> None:
        self.renamed: list[str] = []
        self.lost: list[str] = []
        self._synced: dict[tuple[int, int], str] = {}
        self._pending: dict[tuple[int, int], str] = {}

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._synced[_identity(path)] = _contents(path)
        self._pending.pop(_identity(path), None)

    def rename(self, source: Path, target: Path) -> None:
        if target.name.endswith(ASIDE):
            return
        self.renamed.append(target.name)
        for path in [source, *(source.rglob("*") if source.is_dir() else ())]:
            if not self.holds(path):
                self.lost.append(f"{path.relative_to(source.parent)} at the rename to {target.name}")
        self._pending[_identity(target.parent)] = f"the rename to {target.name}"

    def holds(self, path: Path) -> bool:
        """Whether what is at `path` now was synced."""
        return self._synced.get(_identity(path)) == _contents(path)


@contextmanager
def recorded(monkeypatch, *, needs_directory: bool = True) -> Iterator[Disk]:
    """Records what is done while it is entered. Without `needs_directory` a rename may be lost, but not torn."""
    disk, plain = Disk(), {name: getattr(Path, name) for name in ("rename", "replace")}

    def watched(name):
        def call(source, target):
            disk.rename(Path(source), Path(target))
            return plain[name](source, target)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk.fsync)
        for name in plain:
            patch.setattr(Path, name, watched(name))
        yield disk
    if needs_directory:
        disk.lost += disk._pending.values()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _contents(path: Path) -> str:
    """Of a directory: the names in it."""
    held = "\0".join(sorted(os.listdir(path))).encode() if path.is_dir() else path.read_bytes()
    return hashlib.sha256(held).hexdigest()
