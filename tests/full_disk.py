"""A disk that is full, or broken, from a chosen operation on: for tests that run in this process.

What Python writes is counted as a kernel would: each file that is opened to be written, each write of its buffer, each
fsync, mkdir and rename below one directory. Libraries that write in Rust are stood in for by their exceptions.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = set("wax+")
FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class FullDisk:
    """Fails operation number `first` below `root`, and with `persistent` all after it, with the error `number`.
    `count`: operations so far."""

    def __init__(self, root: Path, first: int | None, *, number: int = errno.ENOSPC, persistent: bool = True) -> None:
        self.root, self.first, self.number, self.persistent = str(root), first, number, persistent
        self.count = 0

    def happens(self, place: Any) -> None:
        """Counts an operation on a path or a descriptor; raises `OSError` where it fails."""
        if isinstance(place, int):
            place = os.readlink(f"/proc/self/fd/{place}")
        if not os.path.abspath(os.fsdecode(place)).startswith(self.root):
            return
        self.count += 1
        if self.first is not None and (self.count == self.first or (self.persistent and self.count > self.first)):
            raise OSError(self.number, os.strerror(self.number), str(place))

    def watched(self, function: Callable) -> Callable:
        """A function of `os` whose first argument is where it changes something."""

        def happens_first(place, *rest, **more):
            self.happens(place)
            return function(place, *rest, **more)

        return happens_first


@contextmanager
def full_disk(monkeypatch, root: Path, first: int | None = None, **options: Any) -> Iterator[FullDisk]:
    """Everything below `root` is on such a disk."""
    disk = FullDisk(root, first, **options)
    true_open, true_os_open = io.open, os.open

    class Raw(io.FileIO):
        def write(self, data) -> int:
            disk.happens(self.fileno())
            return super().write(data)

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not WRITING & set(mode):
            return true_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        disk.happens(file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    def os_opened(path, flags, *rest, **more):
        if flags & FLAGS:
            disk.happens(path)
        return true_os_open(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        patch.setattr(os, "open", os_opened)
        for name in ("write", "fsync", "mkdir", "rename", "replace", "link", "ftruncate"):
            patch.setattr(os, name, disk.watched(getattr(os, name)))
        _watch_rust(patch, disk)
        yield disk


def _watch_rust(patch, disk: FullDisk) -> None:
    """safetensors and tokenizers open, write and close without Python."""
    import transformers.modeling_utils
    from safetensors import SafetensorError
    from transformers import PreTrainedTokenizerFast

    from bumblecore_core.toolkit import state_files

    save_file, save_tokenizer = state_files.save_file, PreTrainedTokenizerFast._save_pretrained

    def told(kind: type[Exception], place: Any) -> None:
        try:
            disk.happens(place)
        except OSError as error:
            raise kind(f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})") from None

    def watched_save_file(tensors, filename, *rest, **more):
        told(SafetensorError, filename)
        save_file(tensors, filename, *rest, **more)

    def watched_save_tokenizer(tokenizer, save_directory, *rest, **more):
        told(Exception, save_directory)
        return save_tokenizer(tokenizer, save_directory, *rest, **more)

    patch.setattr(state_files, "save_file", watched_save_file)
    patch.setattr(transformers.modeling_utils, "safe_save_file", watched_save_file)
    patch.setattr(PreTrainedTokenizerFast, "_save_pretrained", watched_save_tokenizer)
