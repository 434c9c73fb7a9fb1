"""Data-parallel processes: which of them this one is, and how it joins and leaves the group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist

from bumblecore_core import RunError, one

_GROUPS = count()
_STORES: dict[Launch, dist.Store] = {}
LAUNCH_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process's place: `rank` of `world_size` over all machines, `local_rank` on this one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def read_launch(environ: Mapping[str, str]) -> Launch:
    """The place that torchrun put this process in; a single process where none of its variables is set.

    MASTER_ADDR and MASTER_PORT alone mean nothing (clusters export them everywhere). Raises `RunError` BC067 where the
    rest is set in part or does not fit together.
    """
    if not any(key in environ for key in LAUNCH_KEYS[:3]):
        return Launch()
    missing = [key for key in LAUNCH_KEYS if not environ.get(key)]
    if missing:
        found = ", ".join(key for key in LAUNCH_KEYS if environ.get(key))
        raise _wrong(f"{', '.join(missing)} not set although {found or 'others'} are")
    try:
        rank, world_size, local_rank, _ = (
            int(environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        )
    except ValueError:
        raise _wrong("RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be whole numbers") from None
    if world_size < 1 or not 0 <= rank < world_size or local_rank < 0:
        raise _wrong(f"RANK={rank}, LOCAL_RANK={local_rank} and WORLD_SIZE={world_size} do not fit together")
    return Launch(rank=rank, world_size=world_size, local_rank=local_rank)


def choose_device(name: str, launch: Launch) -> torch.device:
    """The device of this process. Raises `RunError`: BC041 without the GPU asked for, BC067 with too few of them."""
    available = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise one(
            RunError,
            "BC041",
            "engine.device is cuda, but PyTorch finds no GPU",
            "Set engine.device to auto or cpu, or install a CUDA build of PyTorch and check the driver",
            field="engine.device",
        )
    if launch.local_rank >= torch.cuda.device_count():
        raise _wrong(f"LOCAL_RANK={launch.local_rank}, but this machine has {torch.cuda.device_count()} GPUs")
    device = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(device)
    return device


def join(launch: Launch, device: torch.device, seconds: float) -> bool:
    """Joins the process group (NCCL on GPUs, gloo on CPUs); whether this call made it. Raises `RunError` BC067.

    Runs that follow one another in a process make a group each. Their addresses go into one store under a name of the
    group's own: under the same name a rank could read, and wait for, the address of a rank of the group before.
    """
    if launch.world_size == 1 or dist.is_initialized():
        return False
    cuda = device.type == "cuda"
    with reported("joining the process group"):
        limit = timedelta(seconds=seconds)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.PrefixStore(f"bumblecore-{next(_GROUPS)}", _store(launch, limit)),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=limit,
            device_id=device if cuda else None,
        )
    return True


def _store(launch: Launch, limit: timedelta) -> dist.Store:
    """Where the processes of this launch find one another; it lives as long as the process."""
    if launch not in _STORES:
        _STORES[launch], _, _ = next(dist.rendezvous("env://", launch.rank, launch.world_size, timeout=limit))
    _STORES[launch].set_timeout(limit)
    return _STORES[launch]


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Turns a failed collective (another process died, or the time ran out) into a `RunError` BC067."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise one(
            RunError,
            "BC067",
            f"{what} failed: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
            "Look for the first error among the other processes: usually one of them ended",
        ) from error


def _wrong(problem: str) -> Exception:
    fix = "Start the run with torchrun, which sets all of them, or unset RANK, WORLD_SIZE and LOCAL_RANK"
    return one(RunError, "BC067", problem, fix)
