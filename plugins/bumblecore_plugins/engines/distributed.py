"""Data-parallel processes: which of them this one is, and how it joins and leaves the group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist

from bumblecore_core import RunError, one

_GROUPS = count()
_STORES: dict[Launch, dist.Store] = {}
COMMUNICATION = ("gloo", "nccl", "connection", "timed out", "timeout")
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


def join(launch: Launch, device: torch.device, seconds: float, *, alone: bool = False) -> bool:
    """Joins the process group (NCCL on GPUs, gloo on CPUs); whether this call made it. Raises `RunError` BC067.

    With `alone` a single process gets a group of its own, which needs no address.

    Runs that follow one another in a process make a group each. Their addresses go into one store under a name of the
    group's own: under the same name a rank could read, and wait for, the address of a rank of the group before.
    """
    if launch.world_size == 1 and not alone:
        return False
    if dist.is_initialized():
        if dist.get_world_size() == launch.world_size:
            return False
        dist.destroy_process_group()  # what a process alone left to the one that it was forked into
    cuda = device.type == "cuda"
    with reported("joining the process group"):
        limit = timedelta(seconds=seconds)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.PrefixStore(
                f"bumblecore-{next(_GROUPS)}", _store(launch, limit) if launch.world_size > 1 else dist.HashStore()
            ),
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
def reported(what: str, *, whole: bool = True) -> Iterator[None]:
    """Turns a failed collective (another process died, or the time ran out) into a `RunError` BC067.

    `whole`: everything in here is a collective; where not, an error is one of communication if it says so.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        text = str(error).strip()
        if not whole and not any(word in text.lower() for word in COMMUNICATION):
            raise
        raise one(
            RunError,
            "BC067",
            f"{what} failed: {text.splitlines()[0] if text else type(error).__name__}",
            "Look for the first error among the other processes: usually one of them ended",
        ) from error


def sum_over_ranks(values: Sequence[float], device: torch.device, world_size: int) -> list[float]:
    """Element-wise sum in float64 over all ranks (the values themselves on one rank). Raises `RunError` BC067."""
    if world_size == 1:
        return [float(value) for value in values]
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    with reported("summing figures over processes"):
        dist.all_reduce(tensor)
        return list(tensor.tolist())


def barrier(device: torch.device, world_size: int) -> None:
    """Waits for every rank. Raises `RunError` BC067."""
    if world_size > 1:
        with reported("waiting for the other processes"):
            dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def same_on_all_ranks(module: torch.nn.Module) -> None:
    """Rank 0's weights and buffers everywhere: equal seeds should give that anyway, other hardware may not."""
    with reported("sharing the weights with the other processes"):
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.numel():
                dist.broadcast(tensor.data, src=0)


def device_words(device: torch.device) -> str:
    """The device in words, for the start summary."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _wrong(problem: str) -> Exception:
    fix = "Start it with `bumble run --nproc` or torchrun, which set all of them, or unset RANK, WORLD_SIZE, LOCAL_RANK"
    return one(RunError, "BC067", problem, fix)
