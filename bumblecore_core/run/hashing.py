"""SHA-256 of whole files, in parallel threads; a hash is remembered for as long as the file is the same one."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TypeVar

BLOCK = 1 << 20  # small enough for the processor's cache, large enough to hide the cost of a call
MOST_THREADS = 8
POLL_SECONDS = 0.05
SETTLED_SECONDS = 2.0  # a file changed this recently may change again within the resolution of its timestamps

S = TypeVar("S")
T = TypeVar("T")


class Cancelled(Exception):
    """Hashing was given up because another thread failed or the process was interrupted."""


def in_threads(action: Callable[[S, threading.Event], T], items: Sequence[S]) -> list[T]:
    """`action(item, stop)` of each item, in parallel threads (hashlib releases the GIL), in the order of `items`.

    `stop` is set where this call is interrupted or an action raises, so that a Ctrl-C does not wait for large files.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, min(MOST_THREADS, os.cpu_count() or 1, len(items)))) as pool:
        try:
            return list(pool.map(lambda item: action(item, stop), items))
        finally:
            stop.set()


def file_hash(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file in hex. Raises `OSError`, and `Cancelled` once `stop` is set."""
    with path.open("rb", buffering=0) as file:
        return _hash(file, stop)


def remembered_hash(path: Path, cache_dir: Path, stop: threading.Event | None = None) -> str:
    """The same, remembered in `cache_dir` by (path, device, inode, size, modification and change time in nanoseconds).

    The change time is the kernel's: no tool sets it back, so other content under the same size and modification time is
    noticed. Of several processes that want the same hash, one reads the file and the others wait for it.
    """
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        key = hashlib.sha256(repr((os.path.realpath(path), identity(before))).encode("utf-8", "surrogateescape"))
        with _Note(cache_dir / "hashes" / key.hexdigest(), stop) as note:
            if (known := note.read()) is not None:
                return known
            digest = _hash(file, stop)
            settled = time.time() - before.st_ctime > SETTLED_SECONDS
            if settled and identity(os.fstat(file.fileno())) == identity(before):
                note.write(digest)
            return digest


def remembered_hashes(paths: Sequence[Path], cache_dir: Path) -> list[str]:
    """`remembered_hash` of each path, in parallel threads."""
    return in_threads(lambda path, stop: remembered_hash(path, cache_dir, stop), paths)


def identity(stat: os.stat_result) -> tuple[int, ...]:
    """What stays the same exactly as long as a file is not written to, replaced or renamed."""
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _hash(file: FileIO, stop: threading.Event | None) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    while count := file.readinto(block):
        if stop is not None and stop.is_set():
            raise Cancelled
        digest.update(block[:count])
    return digest.hexdigest()


class _Note:
    """A file with one hash and a check of it, locked while it is entered. A cache that cannot be written remembers
    nothing: that only costs time, and whether it can be written is reported when shards are."""

    def __init__(self, path: Path, stop: threading.Event | None) -> None:
        self._path, self._stop = path, stop

    def __enter__(self) -> _Note:
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = _opened(self._path)
        if self._descriptor >= 0:
            self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self) -> str | None:
        with suppress(OSError, UnicodeDecodeError):
            text = os.pread(self._descriptor, 256, 0).decode("ascii")
            if len(text) == 128 and text == self._checked(text[:64]):
                return text[:64]
        return None

    def write(self, digest: str) -> None:
        with suppress(OSError):
            os.pwrite(self._descriptor, self._checked(digest).encode("ascii"), 0)

    def _lock(self) -> None:
        while True:
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process hashes this file: poll, since a thread gets no signals
                if self._stop is not None and self._stop.is_set():
                    os.close(self._descriptor)
                    raise Cancelled from None
                time.sleep(POLL_SECONDS)
            except OSError:
                return None  # a file system without locks: the file is hashed twice at worst

    def _checked(self, digest: str) -> str:
        return digest + hashlib.sha256(f"{self._path.name} {digest}".encode()).hexdigest()


def _opened(path: Path) -> int:
    for mode in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):  # the cache may be another user's
        with suppress(OSError):
            return os.open(path, mode | os.O_NONBLOCK, 0o666)
    return -1
