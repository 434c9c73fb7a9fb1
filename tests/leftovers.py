"""Finding the processes that a test's processes left behind."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from pathlib import Path

KEY = "BUMBLE_TEST_MARK"


def new_mark() -> dict[str, str]:
    """An environment variable that a process and all that it starts share."""
    return {KEY: uuid.uuid4().hex}


def marked(mark: dict[str, str]) -> list[int]:
    """Processes with this mark in their environment."""
    entry = f"{KEY}={mark[KEY]}".encode()
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and entry in _environ(path)]


def all_end(pids: Iterable[int], seconds: float = 120.0) -> bool:
    """Whether these processes are gone after a while. One that nobody has waited for yet counts as gone."""
    until = time.monotonic() + seconds
    left = set(pids)
    while left and time.monotonic() < until:
        left = {pid for pid in left if _alive(pid)}
        time.sleep(0.02)
    return not left


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _environ(path: Path) -> bytes:
    try:
        return (path / "environ").read_bytes()
    except OSError:
        return b""
