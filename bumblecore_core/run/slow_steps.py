"""A hint, printed once, where steps take far longer than they should: usually other processes keep the cores busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

WINDOW_SECONDS, WINDOW_STEPS = 30.0, 3  # shorter spells are not worth a hint, and tests and tiny runs end before
WAITING = 0.25  # share of the time in which the main thread was ready to run and had no core
FAR_ABOVE = 10.0  # times the estimate
LEAST_ESTIMATE = 0.02  # seconds a step; below that the overhead of Python and of kernel launches takes the time


@dataclass(frozen=True, kw_only=True)
class CpuUse:
    """Totals so far in seconds. `waited`: how long the main thread has waited for a core, None where the system does
    not tell; `busy`: all processes on the cores that this one may use; `own`: this process."""

    waited: float | None
    busy: float
    own: float
    cores: int
    threads: int


class SlowSteps:
    """Takes each step's time (`add`) and prints a hint through `say`, once, after a window in which the main thread
    waited for cores, or in which steps took a multiple of what their FLOPs take at the devices' measured peak.

    `peak_flops`: FLOP/s of all devices together, or 0 where it is not known.
    """

    def __init__(
        self,
        *,
        peak_flops: float,
        say: Callable[[str], None],
        read: Callable[[], CpuUse] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._peak_flops, self._say, self._read, self._clock = peak_flops, say, read or read_cpu_use, clock
        self._before: tuple[float, CpuUse] | None = None
        self._seconds, self._flops, self._steps, self._done = 0.0, 0.0, 0, False

    def add(self, *, seconds: float, flops: float) -> None:
        """`seconds`: of a step, without its wait for data; `flops`: of all ranks."""
        if self._done:
            return
        if self._before is None:  # the first step warms up: libraries load, kernels are chosen
            self._before = self._clock(), self._read()
            return
        self._seconds, self._flops, self._steps = self._seconds + seconds, self._flops + flops, self._steps + 1
        if self._seconds < WINDOW_SECONDS or self._steps < WINDOW_STEPS:
            return
        (then, before), now, use = self._before, self._clock(), self._read()
        hint = self._waiting(before, use, now - then) or self._far_above()
        if hint:
            self._say(f"hint: {hint}")
            self._done = True
        self._before, self._seconds, self._flops, self._steps = (now, use), 0.0, 0.0, 0

    def _waiting(self, before: CpuUse, use: CpuUse, wall: float) -> str | None:
        if use.waited is None or before.waited is None or use.waited - before.waited < WAITING * wall:
            return None
        others = (use.busy - before.busy - (use.own - before.own)) / wall
        share = f"training waited {(use.waited - before.waited) / wall:.0%} of the last {wall:.0f} s for a CPU core"
        if others < 0.5:
            return (
                f"{share}: this process computes in {use.threads} threads on {use.cores} cores. "
                f"Set OMP_NUM_THREADS to {use.cores} or less."
            )
        return (
            f"{share}: other processes keep {others:.1f} of {use.cores} cores busy. "
            "Stop them, or set OMP_NUM_THREADS to the number of free cores."
        )

    def _far_above(self) -> str | None:
        estimate = self._flops / self._peak_flops / self._steps if self._peak_flops else 0.0
        step = self._seconds / self._steps
        if estimate < LEAST_ESTIMATE or step < FAR_ABOVE * estimate:
            return None
        return (
            f"a step takes {step:.2g} s, {step / estimate:.0f} times what its FLOPs take at the peak for MFU. "
            "`bumble run --profile-plugins` shows where the time goes."
        )


def read_cpu_use() -> CpuUse:
    """The totals now; called on the main thread."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    of_cores = psutil.cpu_times(percpu=True)
    own = psutil.Process().cpu_times()
    return CpuUse(
        waited=_waited(),
        busy=sum(of_cores[core].user + of_cores[core].nice + of_cores[core].system for core in cores),
        own=own.user + own.system,
        cores=len(cores),
        threads=torch.get_num_threads(),
    )


def _waited() -> float | None:
    """Linux counts how long a thread was ready to run while others had the cores."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
