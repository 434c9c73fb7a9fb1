"""Ends a run, in a forked process, at a chosen file operation of a save."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from forked_ranks import fork_ranks

CRASHED = 137
CHANGING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Operations:
    """Counts what changes files from the first save on, and ends the process at operation number `crash_at`."""

    def __init__(self, crash_at: int | None, count_file: Path) -> None:
        self.crash_at, self.count_file = crash_at, count_file
        self.armed, self.count = False, 0

    def install(self) -> None:
        """Watches everything from here on; only for a process that was forked for it."""
        import safetensors.torch
        import transformers.modeling_utils

        from bumblecore_core.run.checkpoint.saver import Saver
        from bumblecore_core.toolkit import state_files

        sys.addaudithook(self._heard)
        fsync, save_file, begin = os.fsync, safetensors.torch.save_file, Saver._begin

        def watched_fsync(descriptor: int) -> None:
            self.happens()
            fsync(descriptor)

        def watched_save_file(tensors, filename, *rest, **more):  # safetensors writes in Rust: no event of Python's
            if self.happens(crash=False):
                save_file(tensors, filename, *rest, **more)
                os.truncate(filename, os.path.getsize(filename) // 2)
                os._exit(CRASHED)
            save_file(tensors, filename, *rest, **more)

        def begin_armed(saver, **options):
            self.armed = True
            begin(saver, **options)

        os.fsync = watched_fsync
        state_files.save_file = transformers.modeling_utils.safe_save_file = watched_save_file
        Saver._begin = begin_armed

    def happens(self, *, crash: bool = True) -> bool:
        """Takes notice of an operation that is about to happen; whether it is the one to crash at."""
        if not self.armed:
            return False
        self.count += 1
        if self.count == self.crash_at and crash:
            os._exit(CRASHED)
        return self.count == self.crash_at

    def _heard(self, event: str, arguments: tuple) -> None:
        opened_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        outside = opened_to_write and not str(arguments[0]).startswith(str(self.count_file.parent))
        if event in CHANGING or (opened_to_write and not outside):
            self.happens()


def run_and_crash(
    config: Path, *, crash_at: int | None, rank: int = 0, world_size: int = 1, limit: float = 60.0
) -> tuple[list[int], int]:
    """(exit codes by rank, operations counted on `rank`) of `bumble run` with a crash at an operation of `rank`.

    Raises `AssertionError` where a process has not ended after `limit` seconds.
    """
    counts = config.with_suffix(".count")
    counts.unlink(missing_ok=True)
    null = Path(os.devnull)
    codes = fork_ranks(
        lambda own: _run(config, Operations(crash_at, counts) if own == rank else None),
        world_size,
        limit=limit,
        output=(null, null),
    )
    return codes, int(counts.read_text()) if counts.exists() else 0


def _run(config: Path, operations: Operations | None) -> None:
    from bumblecore_core.cli import main

    try:
        if operations is not None:
            operations.install()
        main(["run", str(config)])
    finally:
        if operations is not None:
            operations.armed = False
            operations.count_file.write_text(str(operations.count))
