"""File operations that survive a crash: what is renamed into place has reached the disk before."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bumblecore_core.errors import BumbleError, RunError, one
from bumblecore_core.toolkit.disk import FAILING, FULL, OUTGOING, disk_code, sync

FIXES = {"BC045": "Free some space and run again", "BC042": "Check the disk and the directory's permissions"}
WRITING, REMOVING = ".writing", ".removing"
PROBE = re.compile(r"\.probe-\d+")
LEFTOVER = re.compile(
    r"\.(checkpoint-\d+|final|\.replaced|run\.yaml|run\.lock\.json|run\.info\.json|metrics\.json|history\.jsonl)"
    r"(\.writing|\.outgoing|\.removing)"
)


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file and syncs it."""
    path.write_bytes(data)
    sync(path)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically. Raises `RunError` BC045 or BC042, and leaves the file as it was."""
    temporary = writing_path(path)
    try:
        with disk_errors(path):
            write_synced(temporary, text.encode())
            temporary.replace(path)
    except RunError:
        with suppress(OSError):
            temporary.unlink()
        raise


def writing_path(path: Path) -> Path:
    """Where what becomes `path` is written: `.NAME.writing` beside it."""
    return path.with_name(f".{path.name}{WRITING}")


def final_path(temporary: Path) -> Path:
    """The path that `writing_path` made `temporary` from."""
    return temporary.with_name(temporary.name.removeprefix(".").removesuffix(WRITING))


def fresh_beside(directory: Path) -> Path:
    """An empty directory `.NAME.writing` beside `directory`; what an earlier attempt left there is deleted."""
    temporary = writing_path(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def remove_directory(directory: Path) -> None:
    """Deletes a directory so that a crash meanwhile leaves nothing half deleted under its name."""
    doomed = directory.with_name(f".{directory.name}{REMOVING}")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def recover(parent: Path) -> None:
    """Ends what a crash interrupted in `parent`: puts back what was moved aside and not replaced, deletes the rest."""
    for path in sorted(parent.iterdir()):
        match = LEFTOVER.fullmatch(path.name)
        if PROBE.fullmatch(path.name):
            path.unlink(missing_ok=True)
        if match is None:
            continue
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif match[2] == OUTGOING and not os.path.lexists(parent / match[1]):
            path.rename(parent / match[1])
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turns a failure to write into `RunError`: BC045 where the disk is full, BC042 otherwise."""
    try:
        yield
    except Exception as error:
        code = disk_code(error)
        if code is None or isinstance(error, BumbleError):
            raise
        raise one(RunError, code, f"saving failed: {error}", FIXES[code], place=str(directory)) from error


def is_disk_error(error: BaseException) -> bool:
    """Whether writing failed for the system's reasons, and not by a fault of the code that wrote."""
    return disk_code(error) is not None


@contextmanager
def failing_disk() -> Iterator[None]:
    """Turns what a full or broken disk raises, wherever that was, into `RunError`: the last resort, for writes that
    nobody has a better message for (temporary files of libraries, redirected output)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, *FAILING):
            raise
        code, place = disk_code(error) or "BC042", error.filename
        problem = f"a file or the output could not be written: {error.strerror}"
        raise one(RunError, code, problem, FIXES[code], place=str(place or "")) from error
