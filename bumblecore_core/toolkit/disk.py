"""What reaches the disk, and which error code a failure of it has."""

from __future__ import annotations

import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FAILING = (errno.EIO, errno.EROFS, errno.EFBIG)


def sync(path: Path) -> None:
    """fsync of a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_code(error: BaseException) -> str | None:
    """BC045 where the disk is full, BC042 for another failure to write, None where `error` is none of a disk. Libraries
    in Rust (safetensors, tokenizers) give the system's error as text, in exceptions of their own."""
    # by name: the command line's help must not import the library
    if getattr(error, "errno", None) in FULL or any(f"(os error {number})" in str(error) for number in FULL):
        return "BC045"
    failed = isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or "(os error " in str(error)
    return "BC042" if failed else None
