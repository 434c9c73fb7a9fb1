"""Input files must be regular files: opening a FIFO waits for a writer forever, and a device may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bumblecore_core.errors import BumbleError, ModelError, one

LARGEST_JSON = 256 << 20  # bytes; the largest tokenizer.json in use has about 35 MB
SAVE_FIRST = "Give the path of a regular file; save the output of a pipe to one first"

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def irregular(path: str | os.PathLike[str]) -> str | None:
    """What `path` is if it exists and is not a regular file, such as `a FIFO`. Symbolic links are followed; nothing is
    opened."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # a missing file, or a name that no file can have: opening it reports that better
        return None
    return next((name for matches, name in _KINDS if matches(mode)), None)


def require_regular(path: Path, error: type[BumbleError], *, field: str = "") -> None:
    """Raises `error` with BC061 if `path` exists and is not a regular file."""
    if (kind := irregular(path)) is not None:
        raise one(error, "BC061", f"expected a regular file, got {kind}", SAVE_FIRST, place=str(path), field=field)


def require_readable_directory(directory: Path, field: str) -> None:
    """Checks the files of a model, adapter or tokenizer directory, all of which a library may open.

    Raises `ModelError`: BC061 for an entry that is neither a regular file nor a directory, BC064 for a JSON file of
    more than `LARGEST_JSON` bytes.
    """
    for place in (directory, directory / "additional_chat_templates"):
        try:
            entries = sorted(place.iterdir())
        except OSError:
            continue  # what is missing or unreadable is reported where it is opened
        for entry in entries:
            if not entry.is_dir():
                require_regular(entry, ModelError, field=field)
            if entry.suffix == ".json" and entry.is_file() and (size := entry.stat().st_size) > LARGEST_JSON:
                problem = f"the file has {size:,} bytes, more than the limit of {LARGEST_JSON:,}"
                raise one(ModelError, "BC064", problem, "Copy the file again", place=str(entry), field=field)
