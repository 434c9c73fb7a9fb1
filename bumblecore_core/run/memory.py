"""An estimate of training memory for `bumble plan`: what the parameters cost exactly, activations roughly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bumblecore_core.run.layer_shapes import CHUNKED, FULL, SLIDING, LayerShape, layer_shapes, number, text_config


@dataclass(frozen=True, kw_only=True)
class MemoryInputs:
    """`tokens`, `supervised`: of the largest micro-batch. `weight_bytes`: 2 for bf16 and fp16, 4 for fp32."""

    parameters: int
    trainable: int
    weight_bytes: int
    master_weights: bool
    float32_gradients: bool
    gradient_checkpointing: bool
    tokens: int
    supervised: int
    config: Any


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Of `estimate`'s purposes: those that an engine spreads over the ranks, and by purpose the place of those that do
    not lie in the device's memory."""

    sharded: tuple[str, ...] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)


def placement_of(engine: Any) -> Placement:
    """What the engine says of itself."""
    return Placement(sharded=tuple(getattr(engine, "sharded", ())), elsewhere=dict(getattr(engine, "elsewhere", {})))


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory by purpose. A purpose is in one of the two mappings."""

    sizes: Mapping[str, int]
    """Bytes."""
    unknown: Mapping[str, str]
    """Why the size cannot be estimated from config.json."""


def estimate(inputs: MemoryInputs) -> MemoryEstimate:
    """Weights, masters, gradients and AdamW's two moments follow from the parameter count (16 bytes a parameter in
    mixed precision: 2 + 4 + 4 + 8, less the 2 where gradients stay in half precision); activations assume a decoder
    with gated MLP; the head assumes the fused loss, whose largest buffer is the logits' gradient. Never raises."""
    half = inputs.weight_bytes == 2
    masters = inputs.master_weights and half
    gradient_bytes = 4 if inputs.float32_gradients else inputs.weight_bytes
    sizes = {
        "weights": inputs.parameters * inputs.weight_bytes,
        "float32 masters": inputs.trainable * 4 if masters else 0,
        "gradients": inputs.trainable * gradient_bytes,
        "AdamW moments": inputs.trainable * 2 * (4 if masters or not half else 2),
    }
    unknown: dict[str, str] = {}
    config = text_config(inputs.config)
    for purpose, size in (("activations", _activations(inputs, config)), ("head", _head(inputs, config))):
        if isinstance(size, str):
            unknown[purpose] = size
        else:
            sizes[purpose] = size
    return MemoryEstimate(sizes=sizes, unknown=unknown)


def _head(inputs: MemoryInputs, config: Any) -> int | str:
    """Bytes, or why they are unknown."""
    vocabulary = number(config, "vocab_size")
    if vocabulary is None:
        return "config.json states no vocab_size"
    return inputs.supervised * vocabulary * inputs.weight_bytes


def _activations(inputs: MemoryInputs, config: Any) -> int | str:
    """Bytes, or why they are unknown. With gradient checkpointing: each layer's input, and one layer's activations."""
    hidden, layers = number(config, "hidden_size"), layer_shapes(config)
    if hidden is None or not layers:
        return "config.json does not state the hidden size and the number of layers"
    values = []
    for layer in layers:
        of_token = _layer_values(layer, hidden)
        if isinstance(of_token, str):
            return of_token
        values.append(of_token)
    kept = len(layers) * hidden + max(values) if inputs.gradient_checkpointing else sum(values)
    return kept * inputs.tokens * inputs.weight_bytes


def _layer_values(layer: LayerShape, hidden: int) -> int | str:
    """Values that a layer keeps of a token for the backward pass, or why that is unknown."""
    if layer.kind not in (FULL, SLIDING, CHUNKED):
        return f"the model has layers of the kind {layer.kind}, whose activations depend on the implementation"
    if not (layer.heads and layer.key_width and layer.value_width and layer.key_value_heads and layer.inner):
        return "config.json does not state the width of attention heads"
    query, output = layer.heads * layer.key_width, layer.heads * layer.value_width
    key_value = layer.key_value_heads * (layer.key_width + layer.value_width)
    return 4 * hidden + query + output + key_value + 4 * layer.inner


def readable(count: float) -> str:
    """`1.23 GB` or `4.5 MB`, in powers of ten."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def available_memory() -> int | None:
    """Bytes of main memory that this process may still take, by the kernel and by its control group; None where neither
    says (only Linux does)."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)
