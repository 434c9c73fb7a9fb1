"""The manifest of a saved directory: size and SHA-256 of every file. It is written last; what lacks it does not count.

The manifest guards itself too: it holds the SHA-256 of its own other fields, and its bytes must be exactly what those
fields are written as.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

from bumblecore_core.run.files import write_synced
from bumblecore_core.run.hashing import file_hash, in_threads
from bumblecore_core.run.signed_json import read_signed, sign
from bumblecore_core.toolkit.regular_files import irregular

MANIFEST = "manifest.json"
FORMAT = 1
MARKER = "bumblecore"


class Torn(Exception):
    """A directory that is no whole checkpoint; the message says what is wrong with which file."""


class Newer(Torn):
    """A checkpoint that a newer version of BumbleCore wrote."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file: `size` in bytes, `sha256` in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`files` by path relative to the directory, with forward slashes. `facts`: what the writer noted: at least `step`;
    `evaluation_loss` where the model was evaluated at that step."""

    files: Mapping[str, FileEntry]
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that had been done."""
        return int(self.facts["step"])

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def describe(file: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    return FileEntry(size=file.stat().st_size, sha256=file_hash(file))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes and syncs `directory/manifest.json`."""
    write_synced(directory / MANIFEST, sign(_plain(manifest)))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of `directory`. Raises `Torn` where there is none or it is not what was written, `Newer`."""
    path = directory / MANIFEST
    if (kind := irregular(path)) is not None:
        raise Torn(f"{MANIFEST} is {kind}")
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        raise Torn(f"{MANIFEST} is missing: the directory was never committed") from None
    except OSError as error:
        raise Torn(f"{MANIFEST} cannot be read ({error.strerror})") from None
    try:
        plain = read_signed(written)
        if plain["written_by"] == MARKER and plain["format"] > FORMAT:
            raise Newer(f"format {plain['format']}, and this version of BumbleCore reads up to {FORMAT}")
        files = {name: FileEntry(size=entry["size"], sha256=entry["sha256"]) for name, entry in plain["files"].items()}
        manifest = Manifest(files=files, facts=plain["facts"])
        if plain != _plain(manifest) or not all(map(_is_inside, files)):
            raise ValueError("other fields than ours, or files elsewhere")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Torn(f"{MANIFEST} is damaged") from None
    return manifest


def faults(directory: Path, *, hashes: bool = True) -> list[str]:
    """What is wrong with a saved directory, a line a file. Without `hashes` sizes alone are compared."""
    try:
        return file_faults(directory, read_manifest(directory), hashes=hashes)
    except Torn as torn:
        return [str(torn)]


def file_faults(directory: Path, manifest: Manifest, *, hashes: bool) -> list[str]:
    """The same for a manifest that has been read; files are hashed in parallel threads."""
    names = sorted(manifest.files)

    def fault(name: str, stop: Event) -> str:
        return _fault(directory / name, name, manifest.files[name], hashes=hashes, stop=stop)

    found = in_threads(fault, names) if hashes else [fault(name, Event()) for name in names]
    return [line for line in found if line]


def _fault(file: Path, name: str, entry: FileEntry, *, hashes: bool, stop: Event) -> str:
    try:
        if not file.is_file():
            return f"{name} is missing"
        if (size := file.stat().st_size) != entry.size:
            return f"{name} has {size:,} bytes instead of {entry.size:,}"
        if hashes and file_hash(file, stop) != entry.sha256:
            return f"{name} is not what was written: its SHA-256 differs"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return ""


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _plain(manifest: Manifest) -> dict[str, Any]:
    return {
        "written_by": MARKER,
        "format": FORMAT,
        "facts": dict(manifest.facts),
        "files": {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in sorted(manifest.files.items())},
    }
