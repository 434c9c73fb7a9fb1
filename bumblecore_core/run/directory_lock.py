"""One process at a time writes an output directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bumblecore_core.errors import RunError, one
from bumblecore_core.run.files import disk_errors

LOCK = ".lock"


@contextmanager
def held(directory: Path, *, needed: bool) -> Iterator[None]:
    """Holds `directory/.lock` while it is entered; nothing is done unless `needed` (on every rank but 0).

    A record lock: the kernel gives it back when the process ends, however it ends, and child processes do not inherit
    it. Raises `RunError` BC044 with the holder's pid and host. On a file system without locks nothing is held.
    """
    if not needed:
        yield
        return
    path = directory / LOCK
    with disk_errors(directory):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise _taken(descriptor, path) from None
        except OSError:
            pass  # no locks here (some network file systems): nothing can be told about other processes
        else:
            with disk_errors(directory):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int, path: Path) -> Exception:
    try:
        holder = json.loads(os.read(descriptor, 4096))
        who = f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    fix = "Wait for it, end it, or choose another output_dir"
    return one(RunError, "BC044", f"{who} is writing here", fix, place=str(path.parent), field="output_dir")
