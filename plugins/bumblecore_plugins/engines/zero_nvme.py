"""Offload to NVMe: where DeepSpeed's swap files go, and its optimizer's tensors brought into memory for a moment."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from bumblecore_core import ConfigError, one
from bumblecore_core.toolkit.launch_environment import Launch
from bumblecore_plugins.engines.deepspeed_library import silent
from bumblecore_plugins.engines.zero_build import compile_async_io


class SwapDirectory:
    """A directory of this rank's own below the one that the configuration names: several runs may use one disk, and
    machines one path. Two users of it (the model, a reference model) need one `part` each."""

    def __init__(self, base: Path) -> None:
        try:
            self._path = Path(tempfile.mkdtemp(prefix="bumble-zero-", dir=base))
        except OSError as error:
            problem = f"nothing can be written there: {error.strerror or error}"
            fix = "Name a directory on a fast local disk"
            raise one(ConfigError, "BC061", problem, fix, place=str(base), field="engine.nvme_path") from None

    def part(self, name: str) -> Path:
        """A directory for one user."""
        path = self._path / name
        path.mkdir(exist_ok=True)
        return path

    def remove(self) -> None:
        """Frees the disk."""
        shutil.rmtree(self._path, ignore_errors=True)


def drop_stale_lock(directory: Path, *, patience: float = 3.0) -> bool:
    """Removes `lock` from a directory in which torch compiles an operator, where whoever made it is gone: torch waits
    for it forever. A living build is known by its compilers, which work in that directory. Whether it was removed."""
    lock = directory / "lock"
    until = time.monotonic() + patience
    while lock.exists() and not _worked_in(directory):
        if time.monotonic() > until:
            lock.unlink(missing_ok=True)
            return True
        time.sleep(patience / 10)
    return False


def _worked_in(directory: Path) -> bool:
    real = directory.resolve()
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == real:
                return True
        except (psutil.Error, OSError):
            continue
    return False


def build_async_io(launch: Launch, barrier: Callable[[], None]) -> None:
    """Compiles DeepSpeed's asynchronous file operator, once on each machine and quietly. Raises `ConfigError` BC039
    where it cannot be."""

    def load() -> bool:
        with silent():
            from deepspeed.ops.op_builder import AsyncIOBuilder
            from torch.utils.cpp_extension import _get_build_directory

            try:
                names = ("pin_memory", AsyncIOBuilder.NAME)
                directories = {name: Path(_get_build_directory(name, verbose=False)) for name in names}
                for directory in directories.values():
                    drop_stale_lock(directory)
                if not AsyncIOBuilder().is_compatible():
                    return False
                compiled = all((directory / f"{name}.so").exists() for name, directory in directories.items())
                return bool((compiled or compile_async_io()) and AsyncIOBuilder().load(verbose=False))
            except Exception:  # whatever a compiler says
                return False

    loaded = load() if launch.local_rank == 0 else None
    barrier()
    if not (load() if loaded is None else loaded):
        problem = "DeepSpeed's operator async_io, which offload to nvme needs, cannot be built here"
        fix = "Install libaio with its headers (libaio-dev, libaio-devel) and a C++ compiler, or offload to cpu"
        raise one(ConfigError, "BC039", problem, fix, field="engine.offload_optimizer, engine.offload_parameters")


def swapped(optimizer: Any, owner: torch.Tensor) -> bool:
    """Whether DeepSpeed keeps this tensor of its optimizer, and the state beside it, on disk between steps. Small ones
    (below 1 MiB) stay in memory."""
    swapper = getattr(optimizer, "optimizer_swapper", None)
    return swapper is not None and swapper._get_param_swap_info(owner) is not None


@contextmanager
def resident(optimizer: Any, owner: torch.Tensor, *, write: bool) -> Iterator[None]:
    """Has a tensor of DeepSpeed's optimizer and its state in memory inside; with `write` what is changed in them, or
    added to the state, goes back to disk."""
    if not swapped(optimizer, owner):
        yield
        return
    swapper = optimizer.optimizer_swapper
    swapper.swap_in_optimizer_state(parameter=owner)
    try:
        yield
    finally:
        if write:
            swapper.swap_out_optimizer_state(parameter=owner)
        else:
            swapper.release_swap_buffers(parameter=owner)
        owner.grad = None
