"""Verifying token shards once for each run and host: one process hashes them, the others take over its verdict."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bumblecore_core.run.data.store import NoStore, TokenStore, TornStore

LONGEST = 4096  # bytes of a verdict


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """`files`: a hash over the files' identities; `time`: when verifying began, in Unix seconds; `damaged`: how many
    files are not what was written; `rebuilt`: how many damaged ones were there before these were made."""

    files: str
    time: float
    damaged: int
    rebuilt: int


def open_verified(
    directory: Path, fingerprint: str, *, files: Sequence[str], weights: Sequence[float], since: float | None
) -> tuple[TokenStore | None, int]:
    """(the store in `directory`, 0), or (None, how many of its files are damaged); (None, 0) where there is none.

    Every file is read and hashed, unless a process of this host did so after `since` (Unix seconds; None: never) and
    the files are still the same.
    """
    if not os.path.lexists(directory):
        return None, 0
    with _verdict_file(directory) as descriptor:
        try:  # under the lock, so that nobody replaces the files between their mapping and the verdict
            store = TokenStore(directory, files=files, weights=weights, reused=True)
            if store.fingerprint != fingerprint:
                return None, 1
            verdict = _verdict(store, since, descriptor)
        except NoStore:
            return None, 0
        except TornStore:
            return None, 1
    if verdict.damaged:
        return None, verdict.damaged
    count_rebuilt(store, verdict.rebuilt)
    return store, 0


@contextmanager
def noting_built(directory: Path, damaged: int) -> Iterator[None]:
    """Notes that the shards that the block moves to `directory`, in place of ones with `damaged` damaged files, need no
    verifying: their bytes were hashed when they were written. Other processes open what is there before or after."""
    with _verdict_file(directory) as descriptor:
        yield
        files = _digest(TokenStore(directory))
        _write(descriptor, _Verdict(files=files, time=time.time(), damaged=0, rebuilt=damaged))


def count_rebuilt(store: TokenStore, rebuilt: int) -> None:
    """Has this run's report count them; the stored report, which is shown with every reuse, does not."""
    if rebuilt:
        store.report = replace(store.report, warnings={**store.report.warnings, "BC075": rebuilt})


def _verdict(store: TokenStore, since: float | None, descriptor: int) -> _Verdict:
    files, begun = _digest(store), time.time()
    known = _read(descriptor) if since is not None else None
    if known is not None and known.files == files and known.time >= (since or 0):
        return known
    verdict = _Verdict(files=files, time=begun, damaged=len(store.damaged()), rebuilt=0)
    _write(descriptor, verdict)
    return verdict


def _digest(store: TokenStore) -> str:
    return hashlib.sha256(repr(sorted(store.identities.items())).encode()).hexdigest()


@contextmanager
def _verdict_file(directory: Path) -> Iterator[int]:
    """A descriptor of this host's verdict on a store, locked: others wait here while one hashes. -1 where the cache
    cannot be written; each process hashes for itself then."""
    host = hashlib.sha256(platform.node().encode("utf-8", "surrogateescape")).hexdigest()[:8]
    descriptor = -1
    try:
        with suppress(OSError):
            path = directory.with_name(f"{directory.name}.{host}.verified")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _read(descriptor: int) -> _Verdict | None:
    try:
        plain = json.loads(os.pread(descriptor, LONGEST, 0))
        kinds = {"files": str, "time": float, "damaged": int, "rebuilt": int}
        return _Verdict(**plain) if {name: type(value) for name, value in plain.items()} == kinds else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _write(descriptor: int, verdict: _Verdict) -> None:
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(verdict)).encode(), 0)
