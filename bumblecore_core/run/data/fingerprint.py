"""The fingerprint of token shards: everything that their bytes depend on, as one SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bumblecore_core.config.schema import DataSection
from bumblecore_core.errors import DataError, one
from bumblecore_core.run.data.compressed import compression_of, form_of
from bumblecore_core.run.data.files import Source
from bumblecore_core.run.hashing import remembered_hashes
from bumblecore_core.toolkit.packages import distribution_version

LIBRARIES = ("bumblecore", "tokenizers", "transformers", "jinja2")


def default_cache_dir() -> Path:
    """`$BUMBLE_CACHE`, else `~/.cache/bumblecore`."""
    return Path(os.environ.get("BUMBLE_CACHE") or Path.home() / ".cache" / "bumblecore")


def cache_dir_of(data: DataSection) -> Path:
    """Where a run keeps token shards, reference log-probabilities and hashes of files."""
    return Path(os.path.expanduser(data.cache_dir)) if data.cache_dir else default_cache_dir()


def content_hashes(sources: Sequence[Source], cache_dir: Path) -> list[str]:
    """SHA-256 of each file's bytes, remembered in the cache. Raises `DataError` BC061 where one cannot be read."""
    try:
        return remembered_hashes([source.path for source in sources], cache_dir)
    except OSError as error:
        problem = f"the file cannot be read: {error.strerror or error}"
        raise one(
            DataError, "BC061", problem, "Check the path and the disk", place=str(error.filename or "")
        ) from error


def data_fingerprint(
    sources: Sequence[Source],
    hashes: Sequence[str],
    *,
    parts: Mapping[str, Any],
    detectable: Iterable[str],
    code: str,
) -> str:
    """SHA-256 in hex over the files' contents (`hashes`) and forms, their formats with options, `parts`, `code` and the
    versions of the libraries that tokenize. Where the files lie, and their weights, play no part.

    `detectable`: the formats that a file without a named one is told from; `code`: a hash of the plugins' sources.
    """
    files = [
        {
            "sha256": digest,
            "form": form_of(source.path) + compression_of(source.path),
            "format": "auto" if source.format is None else source.format.record.name,
            "options": None if source.format is None else source.format.options.model_dump(mode="json"),
        }
        for source, digest in zip(sources, hashes, strict=True)
    ]
    detected_among = sorted(detectable) if any(source.format is None for source in sources) else []
    versions = {library: installed_version(library) for library in LIBRARIES}
    everything = {"files": files, "auto": detected_among, "parts": dict(parts), "code": code, "versions": versions}
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


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
    return distribution_version(library) or "not installed"
