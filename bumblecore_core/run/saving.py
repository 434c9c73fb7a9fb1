"""Saving a model so that it is there whole or not at all, in the form that `from_pretrained` reads."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import RunError, one
from bumblecore_core.protocols import Adapter

if TYPE_CHECKING:
    import torch


def save_model(
    *,
    directory: Path,
    model: Any,
    state: Mapping[str, torch.Tensor],
    tokenizer: Any,
    adapter: Adapter | None,
    max_shard_size: str,
) -> None:
    """Writes safetensors shards (or the adapter alone), config, generation config, tokenizer and chat template.

    Raises `RunError` BC045 where the disk does not take it; what was in `directory` before is then untouched.
    """

    def write(target: Path) -> None:
        if adapter is None:
            with _without_bars():
                model.save_pretrained(target, state_dict=dict(state), max_shard_size=max_shard_size)
        else:
            adapter.save(model=model, state=state, directory=target)
        tokenizer.save_pretrained(target)

    try:
        replace_directory(directory, write)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "Free some space and run again" if full else "Check the output directory's permissions"
        raise one(
            RunError, "BC045" if full else "BC042", f"saving failed: {error}", fix, place=str(directory)
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silences transformers' own progress bars: the run's loggers say what is saved."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def replace_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Fills a temporary directory beside `directory` by `write`, syncs it to disk and renames it into place."""
    temporary = directory.with_name(f".{directory.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    outgoing = directory.with_name(f".{directory.name}.outgoing")
    shutil.rmtree(outgoing, ignore_errors=True)
    if directory.exists():
        directory.rename(outgoing)
    temporary.rename(directory)
    sync(directory.parent)
    shutil.rmtree(outgoing, ignore_errors=True)


def sync(path: Path) -> None:
    """fsync of a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
