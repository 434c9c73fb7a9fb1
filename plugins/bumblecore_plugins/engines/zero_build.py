"""Compiles DeepSpeed's file operator in a process of its own, which takes its compilers along when the run ends.

`ninja` and the compilers that it starts outlive whoever started them; minutes of work that nobody waits for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import psutil


def run_with_children(command: Sequence[str]) -> bool:
    """Runs a command that calls `end_with_parent`, quietly; whether it succeeded. However this process ends meanwhile,
    the command and all that it started end too."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait() == 0
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def end_with_parent() -> None:
    """In the process of `run_with_children`: kills what this one started, and then itself, once the parent is gone."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    sys.stdin.buffer.read()  # until the parent's end of the pipe is closed
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with suppress(psutil.Error):
                child.kill()
    os._exit(1)


def compile_async_io() -> bool:
    """Whether the operator was compiled, in a process that runs this module."""
    return run_with_children([sys.executable, "-m", __name__])


def main() -> int:
    """The exit code."""
    end_with_parent()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    return 0 if builder.is_compatible() and builder.load(verbose=False) else 1


if __name__ == "__main__":
    sys.exit(main())
