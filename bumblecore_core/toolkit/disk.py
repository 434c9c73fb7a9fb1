"""Renaming what has reached the disk into place, and the error code of a write that failed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FAILING = (errno.EIO, errno.EROFS, errno.EFBIG)
OUTGOING = ".outgoing"


def sync(path: Path) -> None:
    """fsync of a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, directory: Path) -> None:
    """Renames the complete and synced `temporary` to `directory`, and syncs the parent. What was there before is moved
    to `outgoing_path` first and deleted last, so that a crash in between loses nothing."""
    outgoing = outgoing_path(directory)
    shutil.rmtree(outgoing, ignore_errors=True)
    if os.path.lexists(directory):
        directory.rename(outgoing)
    temporary.rename(directory)
    sync(directory.parent)
    shutil.rmtree(outgoing, ignore_errors=True)


def outgoing_path(directory: Path) -> Path:
    """Where a directory that is being replaced is kept: `.NAME.outgoing` next to it."""
    return directory.with_name(f".{directory.name}{OUTGOING}")


def disk_code(error: BaseException) -> str | None:
    """BC045 where the disk is full, BC042 for another failure to write, None where `error` is none of a disk. Libraries
    in Rust (safetensors, tokenizers) give the system's error as text, in exceptions of their own."""
    # by name: the command line's help must not import the library
    if getattr(error, "errno", None) in FULL or any(f"(os error {number})" in str(error) for number in FULL):
        return "BC045"
    failed = isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or "(os error " in str(error)
    return "BC042" if failed else None
