"""The cache of token shards: one directory per fingerprint, built by one process at a time, committed by a rename."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bumblecore_core.errors import BumbleError, RunError, one
from bumblecore_core.toolkit.disk import FULL, sync
from bumblecore_core.toolkit.permissions import umask

log = logging.getLogger(__name__)


@contextmanager
def build_lock(directory: Path) -> Iterator[None]:
    """Held by the one process that builds `directory`; others wait here.

    Raises `RunError` BC042 where the cache cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cache_error(error, directory.parent) from error
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)  # which gives the lock back


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another process is tokenizing the same data; waiting for %s", directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        # A file system without locks: two builders then do the work twice, and the rename still lets one win.
        log.info("the file system of %s has no locks", directory.parent)


@contextmanager
def fresh_directory(directory: Path, moving: AbstractContextManager[None]) -> Iterator[Path]:
    """A temporary directory that becomes `directory` when the block ends well, and is removed when it does not.
    `moving` is entered while it is moved."""
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f"{directory.name}.tmp-", dir=directory.parent))
    except OSError as error:
        raise cache_error(error, directory.parent) from error
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~umask())
        sync(temporary)
        with moving:
            _rename(temporary, directory)
            sync(directory.parent)
    except OSError as error:
        raise cache_error(error, directory.parent) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Removes what builders of `directory` that were killed left behind. Only under its lock."""
    for leftover in directory.parent.glob(f"{directory.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def cache_error(error: OSError, directory: Path) -> BumbleError:
    """The error of a cache that cannot be written: BC045 for a full disk, BC042 otherwise."""
    reason = error.strerror or type(error).__name__
    fix = "Set data.cache_dir or $BUMBLE_CACHE to a directory with room that can be written"
    if error.errno in FULL:
        return one(RunError, "BC045", f"no room for the token shards ({reason})", fix, place=str(directory))
    return one(RunError, "BC042", f"the token shards cannot be written ({reason})", fix, place=str(directory))


def _rename(temporary: Path, directory: Path) -> None:
    if directory.is_dir() and not directory.is_symlink():  # damaged, or the caller would have used it
        shutil.rmtree(directory)
    else:
        directory.unlink(missing_ok=True)
    temporary.rename(directory)
