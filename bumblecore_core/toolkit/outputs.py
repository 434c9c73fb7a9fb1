"""What commands write: never over what exists unless `--force` is given, and complete or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import click

from bumblecore_core.errors import BumbleError, RunError, one
from bumblecore_core.toolkit.disk import disk_code, outgoing_path, put_in_place, sync
from bumblecore_core.toolkit.permissions import follow_umask

TOKENIZER_OUTPUT = (
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "chat_template.jinja"),
)
MODEL_OUTPUT = (
    *TOKENIZER_OUTPUT,
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_config.json", "adapter_model.bin"),
)
"""Files that belong to one tokenizer or model, so that another one written over it leaves none of them."""

force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")


def check_output_file(path: Path, *, force: bool, field: str) -> None:
    """Raises `RunError` before any work is done: BC069 where the file exists (unless `force`), BC042 where `path` is a
    directory or a link, or its directory is missing. A device or a pipe is written to as it is."""
    try:
        if path.is_dir() or (path.is_symlink() and path.is_file()):
            raise _unwritable("a directory or a link exists here", path, field)
        if path.is_file() and not force:
            raise output_exists(path, field)
        if not path.parent.is_dir():
            raise _unwritable("there is no such directory", path, field)
    except (OSError, ValueError) as error:
        raise _failed(error, path, field) from error


def write_output_file(path: Path, data: bytes, *, field: str) -> None:
    """Replaces `path`, which `check_output_file` has accepted, atomically. Raises `RunError` BC042 or BC045."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        if path.exists() and not path.is_file():  # a device or a pipe: it must not be replaced by a file
            path.write_bytes(data)
            return
        temporary.write_bytes(data)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise _failed(error, path, field) from error


def check_output_directory(path: Path, *, force: bool, field: str) -> None:
    """Raises `RunError` before any work is done: BC069 where the directory exists and is not empty (unless `force`),
    BC042 where `path` is something else or cannot be replaced."""
    path = Path(os.path.abspath(path))
    try:
        if os.fsencode(path).decode("utf-8", "replace") != str(path):  # libraries in Rust take no other paths
            raise _unwritable("the path is not UTF-8", path, field)
        if not os.path.lexists(path):
            return
        if path.is_symlink() or not path.is_dir():
            raise _unwritable("something other than a directory exists here", path, field)
        if Path.cwd().is_relative_to(path):
            raise _unwritable("the working directory cannot be replaced", path, field)
        entries = list(path.iterdir())
        if entries and not force:
            raise output_exists(path, field)
        if any(entry.is_dir() for entry in entries):
            raise _unwritable("a directory that contains directories is not replaced", path, field)
    except (OSError, ValueError) as error:
        raise _failed(error, path, field) from error


def write_output_directory(path: Path, write: Callable[[Path], object], *, replaces: Sequence[str], field: str) -> None:
    """Has `write` fill a directory next to `path`, syncs it, and renames it to `path`, which `check_output_directory`
    has accepted. Of a directory that exists, the files that match a pattern of `replaces` are dropped, all others kept.

    Raises `RunError` BC042, or BC045 where the disk is full.
    """
    path = Path(os.path.abspath(path))
    temporary, outgoing = path.with_name(f".{path.name}.writing"), outgoing_path(path)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                follow_umask(file)
            sync(file)
        for file in path.iterdir() if path.is_dir() else ():
            dropped = any(fnmatchcase(file.name, pattern) for pattern in replaces)
            if not dropped and not (temporary / file.name).exists():
                _link(file, temporary / file.name)
        sync(temporary)
        put_in_place(temporary, path)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not os.path.lexists(path) and os.path.isdir(outgoing):
            outgoing.rename(path)
        if disk_code(error) is not None:
            raise _failed(error, path, field) from error
        raise


def _link(file: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no hard links."""
    try:
        os.link(file, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, target, follow_symlinks=False)


def output_exists(path: Path, field: str) -> BumbleError:
    """The error of an output path that is taken."""
    return one(
        RunError, "BC069", "the output exists", "Choose another path, or add --force", place=str(path), field=field
    )


def _unwritable(problem: str, path: Path, field: str) -> BumbleError:
    return one(RunError, "BC042", problem, "Choose another path", place=str(path), field=field)


def _failed(error: Exception, path: Path, field: str) -> BumbleError:
    problem = f"the output cannot be written: {getattr(error, 'strerror', None) or error}"
    if disk_code(error) == "BC045":
        return one(RunError, "BC045", problem, "Free some space and run again", place=str(path), field=field)
    return _unwritable(problem, path, field)
