"""What a model's step costs in FLOPs, what the device could do, and how much memory the process took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bumblecore_core.protocols import Engine
from bumblecore_core.run.layer_shapes import (
    CHUNKED,
    EXPERT_COUNTS,
    FULL,
    SLIDING,
    LayerShape,
    active_share,
    layer_shapes,
    number,
    text_config,
)
from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_core.toolkit.vision_language import tower_parameters
from bumblecore_core.values import Batch

FORWARD_AND_BACKWARD, WITHOUT_WEIGHT_GRADIENT = 6, 4  # FLOPs a weight and position
COUNTED_BY_WEIGHTS = ("mlp", "moe", "conv")  # layer types without products of activations with one another
PROBE_SIZE = {"cpu": 1024, "cuda": 8192}
PROBE_SECONDS, PROBE_REPEATS = 0.1, 8


@dataclass(frozen=True)
class Attention:
    """A layer's attention. It costs 12 · width for each pair of positions that attend to one another."""

    width: float
    """heads × head size; where queries and values differ in size, their mean."""
    window: int | None = None
    """Keys that a query sees at most; None: all before it."""
    chunk: int | None = None
    """Positions in a chunk whose queries see no other chunk; None: no chunks."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of a training step by what the model has to compute (Chowdhery et al. 2022, "PaLM", appendix B): what
    gradient checkpointing computes a second time does not count, nor do norms and element-wise operations.

    `per_token`: 6 for each weight of the matrix products outside the head, 4 where it is frozen. `per_head_position`:
    the same for the head, which is computed at some positions only. `attention`: what each layer attends to.
    `unknown`: parts that are not counted, in words; with any, the FLOPs are a lower bound.
    """

    per_token: float
    per_head_position: float
    attention: Sequence[Attention]
    unknown: Sequence[str] = ()

    def of(self, batch: Batch) -> float:
        """FLOPs of forward and backward pass of one micro-batch."""
        found = self.per_token * batch.tokens + self.per_head_position * batch.scored
        for layer in self.attention:
            found += 12 * layer.width * sum(_layer_pairs(length, layer) for length in batch.document_lengths)
        return found


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the utilization is told against: `flops` of a micro-batch, `peak` FLOP/s of all devices together, and in
    words where the peak is from."""

    flops: Flops
    peak: float
    words: str


def speed_of(engine: Engine, model: Any, stated_tflops: float | None) -> Speed:
    """The model's FLOPs, and the peak of this run's devices: as stated (of one device), or measured on each, once per
    process. A collective."""
    mine = stated_tflops * 1e12 if stated_tflops else known_peak(engine.device, engine.dtype)
    peak = engine.sum_over_ranks([mine])[0]
    devices = f" on {engine.world_size} devices" if engine.world_size > 1 else ""
    words = f"{peak / 1e12:.3g} TFLOP/s{devices}, {'as stated' if stated_tflops else 'measured by a matrix product'}"
    flops = count_flops(model)
    if flops.unknown:
        words += f"; FLOPs unknown: {'; '.join(flops.unknown)}, so that mfu is a lower bound"
    return Speed(flops=flops, peak=peak, words=words)


def count_flops(model: Any) -> Flops:
    """Counted from the parameters of a transformers causal language model, with an adapter in it or not. Experts of a
    mixture count by the share of them that a token passes through. Never raises: see `Flops.unknown`."""
    config = text_config(model.config)
    head_weight = _head_weight(model)
    unused = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    unused |= {id(parameter) for parameter in tower_parameters(model).values()}
    experts, share = number(config, *EXPERT_COUNTS), active_share(config)
    per_token = 0.0
    for name, parameter in model.named_parameters():
        if len(whole_shape(parameter)) >= 2 and parameter is not head_weight and id(parameter) not in unused:
            per_token += _cost(parameter) * (share if _is_expert(name, parameter, experts) else 1.0)
    attention, unknown = _attention(config)
    return Flops(
        per_token=per_token,
        per_head_position=0.0 if head_weight is None else _cost(head_weight),
        attention=attention,
        unknown=unknown,
    )


def _head_weight(model: Any) -> Any:
    try:
        matrices = [p for p in model.get_output_embeddings().parameters() if len(whole_shape(p)) >= 2]
    except Exception:  # some classes have no such method, others raise NotImplementedError or return None
        return None
    # An adapter's head holds further matrices, and `weight` of one with trained rows is no parameter.
    return max(matrices, key=lambda p: (whole_shape(p).numel(), p.requires_grad), default=None)


def _cost(parameter: Any) -> float:
    factor = FORWARD_AND_BACKWARD if parameter.requires_grad else WITHOUT_WEIGHT_GRADIENT
    return float(factor * whole_shape(parameter).numel())


def _is_expert(name: str, parameter: Any, experts: int | None) -> bool:
    """Whether a parameter belongs to the experts that a router chooses from: to a module of that name (not
    `shared_experts`), or to a fused one whose first dimension counts them (not a depthwise convolution)."""
    if "experts" in name.split("."):
        return True
    shape = whole_shape(parameter)
    return len(shape) == 3 and shape[0] == experts and shape[1] > 1


def _attention(config: Any) -> tuple[list[Attention], list[str]]:
    """(what the layers attend to, parts that are unknown)."""
    layers = layer_shapes(config)
    found, missing = [], Counter[str]()
    for layer in layers:
        if layer.kind in COUNTED_BY_WEIGHTS:
            continue
        attention = _layer_attention(layer)
        if attention is None:
            missing[layer.kind] += 1
        else:
            found.append(attention)
    unknown = [f"{count} layers of {kind}" for kind, count in sorted(missing.items())]
    return found, unknown if layers else ["attention, since config.json does not state the number of layers"]


def _layer_attention(layer: LayerShape) -> Attention | None:
    """None for a recurrence or sparse attention, and where config.json states no head size."""
    if layer.kind not in (FULL, SLIDING, CHUNKED) or not (layer.heads and layer.key_width and layer.value_width):
        return None
    return Attention(layer.heads * (layer.key_width + layer.value_width) / 2, layer.window, layer.chunk)


def _layer_pairs(length: int, layer: Attention) -> int:
    """How many (query, key) pairs a layer's attention has in a document."""
    if layer.chunk is None:
        return _pairs(length, layer.window)
    chunks, rest = divmod(length, layer.chunk)
    return chunks * _pairs(layer.chunk, layer.window) + _pairs(rest, layer.window)


def _pairs(length: int, window: int | None) -> int:
    """How many (query, key) pairs causal attention has in a document, each query seeing at most `window` keys."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


@cache
def known_peak(device: torch.device, dtype: torch.dtype) -> float:
    """`measured_peak`, measured once per process: later runs of a chain have the same device."""
    return measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product in `dtype`, the best of a few within about a tenth of a second. Nothing random
    is drawn."""
    size = PROBE_SIZE.get(device.type, PROBE_SIZE["cuda"])
    matrix = torch.linspace(-1, 1, size * size, device=device).reshape(size, size).to(dtype)
    product = matrix @ matrix
    best, until = float("inf"), time.perf_counter() + PROBE_SECONDS
    for _ in range(PROBE_REPEATS):
        _wait(device)
        started = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        _wait(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > until:
            break
    return float(2 * size**3 / best)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """Highest memory so far in bytes: the allocator's on a GPU, the process's resident size on a CPU; 0 where the
    system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:  # not getrusage, whose figure begins at that of the process which started this one
        status = Path("/proc/self/status").read_text()
    except OSError:
        return _resident_by_getrusage()
    return float(next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), 0)) * 1024


def _resident_by_getrusage() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS, which has no /proc
