"""Files that libraries create readable by their owner alone (safetensors does) get the mode that other files have."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def umask() -> int:
    """The umask of this process."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    # Elsewhere it can only be read by setting it; a file that another thread creates meanwhile is too private.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def follow_umask(file: Path) -> None:
    """Gives `file` the permissions that a new file gets, where the file system has permissions."""
    with suppress(OSError):
        file.chmod(0o666 & ~umask())
