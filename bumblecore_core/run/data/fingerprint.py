"""The fingerprint of token shards: everything that their bytes depend on, as one SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bumblecore_core.run.data.files import Source

LIBRARIES = ("bumblecore", "tokenizers", "transformers", "jinja2")
SETTLED_SECONDS = 2.0  # a file changed this recently may change again within its timestamp's resolution


def default_cache_dir() -> Path:
    """`$BUMBLE_CACHE`, else `~/.cache/bumblecore`."""
    return Path(os.environ.get("BUMBLE_CACHE") or Path.home() / ".cache" / "bumblecore")


def data_fingerprint(
    sources: Sequence[Source], *, parts: Mapping[str, Any], detectable: Iterable[str], code: str, cache_dir: Path
) -> str:
    """SHA-256 in hex over the files' contents and forms, their formats with options, `parts`, `code` and the versions
    of the libraries that tokenize. Where the files lie, and their weights, play no part.

    `detectable`: the formats that a file without a named one is told from; `code`: a hash of the plugins' sources.
    """
    files = [
        {
            "sha256": content_hash(source.path, cache_dir),
            "form": source.path.suffix.lower(),
            "format": "auto" if source.format is None else source.format.record.name,
            "options": None if source.format is None else source.format.options.model_dump(mode="json"),
        }
        for source in sources
    ]
    detected_among = sorted(detectable) if any(source.format is None for source in sources) else []
    versions = {library: installed_version(library) for library in LIBRARIES}
    everything = {"files": files, "auto": detected_among, "parts": dict(parts), "code": code, "versions": versions}
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


def content_hash(path: Path, cache_dir: Path) -> str:
    """SHA-256 of the file's bytes; remembered in the cache by (path, size, modification time in nanoseconds)."""
    stat = path.stat()
    key = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    note = cache_dir / "hashes" / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        known = note.read_text("ascii")
        if len(known) == 64:
            return known
    except (OSError, UnicodeDecodeError):
        pass  # not there yet, or torn: hash the file again
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if time.time() - stat.st_mtime > SETTLED_SECONDS:
        _remember(note, digest.hexdigest())
    return digest.hexdigest()


def code_fingerprint(objects: Iterable[Any]) -> str:
    """A hash of the Python sources that the classes of `objects` (or the functions themselves) are defined in, with
    their neighbours in the same package, so that shards made by an edited plugin are never reused."""
    files: set[Path] = set()
    for thing in objects:
        module = sys.modules.get(getattr(thing, "__module__", None) or type(thing).__module__)
        source = getattr(module, "__file__", None)
        if source is not None and source.endswith(".py"):
            # a module on its own, not in a package, has neighbours that are none of its business
            alone = not getattr(module, "__package__", None)
            files.update([Path(source)] if alone else Path(source).parent.rglob("*.py"))
    for package in ("bumblecore_core.toolkit", "bumblecore_core.run.data"):
        source = getattr(sys.modules.get(package), "__file__", None)
        if source is not None:
            files.update(Path(source).parent.glob("*.py"))
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: (file.name, str(file))):
        digest.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def installed_version(library: str) -> str:
    """The version of a distribution, or `not installed`."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _remember(note: Path, digest: str) -> None:
    temporary = note.with_suffix(f".{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(digest, "ascii")
        temporary.replace(note)
    except OSError:
        pass  # the cache saves time alone; whether it can be written is said when shards are
