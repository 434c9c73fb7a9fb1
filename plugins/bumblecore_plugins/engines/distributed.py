"""Data-parallel processes: which of them this one is, and how it joins and leaves the group."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist

from bumblecore_core import RunError, one
from bumblecore_core.toolkit.launch_environment import Launch
from bumblecore_plugins.engines.heartbeat import Heartbeat

_GROUPS = count()
_STORES: dict[Launch, dist.Store] = {}
_HEARTBEATS: list[Heartbeat] = []  # at most one: that of the process group, where there are other ranks
UNREACHABLE = 2  # exit code where the store could not be left; the error has been reported
COMMUNICATION = ("gloo", "nccl", "connection", "timed out", "timeout")


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
        problem = f"LOCAL_RANK={launch.local_rank}, but this machine has {torch.cuda.device_count()} GPUs"
        raise one(RunError, "BC067", problem, "Start one process for each GPU, as `bumble run --nproc auto` does")
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
    limit = timedelta(seconds=seconds)
    if dist.is_initialized():
        if dist.get_world_size() == launch.world_size:
            limit_groups(seconds)
            return False
        dist.destroy_process_group()  # what a process alone left to the one that it was forked into
    cuda = device.type == "cuda"
    with reported("joining the process group"):
        store = dist.PrefixStore(
            f"bumblecore-{next(_GROUPS)}", _store(launch, limit) if launch.world_size > 1 else dist.HashStore()
        )
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=limit,
            device_id=device if cuda else None,
        )
        if launch.world_size > 1:
            _start_heartbeat(dist.PrefixStore("heartbeat", store), launch, seconds)
    return True


def leave() -> None:
    """Leaves the process group, where there is one. Not a collective."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _stop_heartbeat()


def limit_groups(seconds: float) -> None:
    """Has every collective of every process group, also of those that a library made, fail after `seconds`, and counts
    silent ranks as lost after as long."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
    for heartbeat in _HEARTBEATS:
        heartbeat.limit = seconds


def _start_heartbeat(store: dist.Store, launch: Launch, seconds: float) -> None:
    _stop_heartbeat()
    _HEARTBEATS.append(Heartbeat(store, rank=launch.rank, world_size=launch.world_size, limit=seconds))
    # a thread that is inside the store when the interpreter is torn down would end the process with SIGABRT
    atexit.register(_stop_heartbeat, at_exit=True)


def _stop_heartbeat(*, at_exit: bool = False) -> None:
    for heartbeat in list(_HEARTBEATS):
        if heartbeat.stop():
            _HEARTBEATS.remove(heartbeat)
        elif at_exit:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(UNREACHABLE)
    if not _HEARTBEATS:
        atexit.unregister(_stop_heartbeat)


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
        problem = f"{what} failed: {text.splitlines()[0] if text else type(error).__name__}"
        for heartbeat in _HEARTBEATS:
            heartbeat.fail()
            problem += f"; {silent}" if (silent := heartbeat.silent()) else ""
        fix = "Look for the first error among the other processes: usually one of them ended"
        raise one(RunError, "BC067", problem, fix) from error


def sum_over_ranks(values: Sequence[float], device: torch.device, world_size: int) -> list[float]:
    """Element-wise sum in float64 over all ranks (the values themselves on one rank). Raises `RunError` BC067."""
    if world_size == 1:
        return [float(value) for value in values]
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    with reported("summing figures over processes"):
        dist.all_reduce(tensor)
        return list(tensor.tolist())


def barrier(device: torch.device, world_size: int) -> None:
    """Waits for every rank, however long one of them works, as long as its heartbeat is heard. Raises `RunError`
    BC067."""
    if world_size > 1:
        with reported("waiting for the other processes"):
            for heartbeat in _HEARTBEATS:
                heartbeat.meet()
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
