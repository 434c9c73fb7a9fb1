"""Sums gradients over data-parallel processes, in buckets, while the backward pass still runs.

Why not `DistributedDataParallel`: its reducer insists on gradients in the weights' own dtype. With bf16 weights whose
`.grad` is float32 (`Parameter.grad_dtype`) it stops with "Expected BFloat16, got Float" on the first synchronised
backward pass after an accumulating one, comm hook or not. It also averages where the contract sums, needs a backward
pass on every rank (a filler batch has none), and fails on parameters that a step did not use. What it does well is
kept: buckets of about 25 MB in the reverse order of the parameters, sent as soon as they are full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from bumblecore_plugins.engines.distributed import reported


@dataclass(kw_only=True)
class Bucket:
    """Parameters whose gradients travel together. `missing`: how many have none from this backward pass yet."""

    parameters: list[torch.nn.Parameter]
    missing: int = 0
    flat: torch.Tensor | None = None
    work: dist.Work | None = None


class GradientSync:
    """Sums the `.grad` of `parameters` over all ranks: `arm` before the window's last backward pass, `send_rest` right
    after it, `finish` before the gradients are used.

    Buckets are sent strictly in order on every rank, whatever the order in which gradients appear, and all of them
    before any other collective: so collectives match even where one rank has a filler and no gradient at all, or where
    ranks use different parameters. A parameter that no rank used keeps `.grad = None`, as on one process.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], *, bucket_bytes: float) -> None:
        self._buckets = _split(parameters, bucket_bytes)
        self._bucket_of = {id(parameter): bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._armed = False
        self._sent = 0
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._accumulated)

    def arm(self) -> None:
        """From here on a bucket is sent when the last of its gradients is there."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._armed, self._sent = True, 0

    def send_rest(self) -> None:
        """Sends the buckets that the backward pass, if there was one, did not fill. Raises `RunError` BC067."""
        with reported("summing gradients over processes"):
            self._send(len(self._buckets))

    def finish(self) -> None:
        """Waits, and puts the sums into `.grad`. A collective; raises `RunError` BC067."""
        with reported("summing gradients over processes"):
            for bucket in self._buckets:
                _receive(bucket)
        self._armed = False

    def _accumulated(self, parameter: torch.Tensor) -> None:
        if not self._armed:
            return
        self._bucket_of[id(parameter)].missing -= 1
        ready = self._sent
        while ready < len(self._buckets) and self._buckets[ready].missing <= 0:
            ready += 1
        self._send(ready)

    def _send(self, end: int) -> None:
        for bucket in self._buckets[self._sent : end]:
            bucket.flat = _flatten(bucket.parameters)
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
        self._sent = max(self._sent, end)


def _split(parameters: Sequence[torch.nn.Parameter], limit: float) -> list[Bucket]:
    """Buckets of one gradient dtype each, last parameters first: backward reaches those first."""
    buckets: list[Bucket] = []
    size, last = 0.0, None
    for parameter in reversed(parameters):
        dtype = _gradient_dtype(parameter)
        if not buckets or dtype != last or size >= limit:
            buckets.append(Bucket(parameters=[]))
            size, last = 0.0, dtype
        buckets[-1].parameters.append(parameter)
        size += parameter.numel() * dtype.itemsize
    return buckets


def _gradient_dtype(parameter: torch.nn.Parameter) -> torch.dtype:
    return parameter.grad_dtype or parameter.dtype


def _flatten(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """The gradients end to end, then one flag per parameter: 1 where this rank has a gradient for it.

    The gradients themselves are let go, so that no more than one bucket is ever held twice.
    """
    dtype, device = _gradient_dtype(parameters[0]), parameters[0].device
    flags = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=dtype, device=device)
    parts = [
        torch.zeros(parameter.numel(), dtype=dtype, device=device)
        if parameter.grad is None
        else parameter.grad.flatten()
        for parameter in parameters
    ]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([*parts, flags])


def _receive(bucket: Bucket) -> None:
    assert bucket.work is not None
    assert bucket.flat is not None
    bucket.work.wait()
    used = bucket.flat[-len(bucket.parameters) :].tolist()
    start = 0
    for parameter, ranks in zip(bucket.parameters, used, strict=True):
        if parameter.grad is not None:
            raise RuntimeError(
                "a gradient appeared after its bucket was sent (two backward passes in one micro-batch?)"
            )
        if ranks:
            parameter.grad = bucket.flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    bucket.work = bucket.flat = None
