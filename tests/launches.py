"""Watching processes that a test started."""

import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

LIMIT = 300.0  # seconds in which a failure of one rank has ended all: a safety net on a loaded machine


def wait_for(there: Callable[[], bool], process: subprocess.Popen, seconds: float = LIMIT) -> None:
    """Comes back once `there()`. Raises `AssertionError` where `process` ends before, or the time has run out."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end or process.poll() is not None:
            process.kill()
            raise AssertionError(f"ended with {process.wait()}: {process.stderr.read() if process.stderr else ''}")
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen) -> dict[int, int]:
    """Rank → process id of a launcher's ranks."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(entry[5:]): int(child) for entry in environment if entry.startswith(b"RANK=")}
    return found


def signal_arrived(pid: int, number: int) -> bool:
    """Whether a signal waits for a process that is stopped."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    pending = next(line for line in status if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) & (1 << (number - 1)))


def nobody_left(pids: Iterable[int]) -> bool:
    """Whether all of these processes are gone."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)
