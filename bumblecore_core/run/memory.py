"""An estimate of training memory for `bumble plan`: what the parameters cost exactly, activations roughly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def estimate(inputs: MemoryInputs) -> Mapping[str, int]:
    """Bytes by purpose. Weights, masters, gradients and AdamW's two moments follow from the parameter count (16 bytes a
    parameter in mixed precision: 2 + 4 + 4 + 8, less the 2 where gradients stay in half precision); activations assume
    a decoder with gated MLP; the head assumes the fused loss, whose largest buffer is the logits' gradient."""
    half = inputs.weight_bytes == 2
    masters = inputs.master_weights and half
    gradient_bytes = 4 if inputs.float32_gradients else inputs.weight_bytes
    return {
        "weights": inputs.parameters * inputs.weight_bytes,
        "float32 masters": inputs.trainable * 4 if masters else 0,
        "gradients": inputs.trainable * gradient_bytes,
        "AdamW moments": inputs.trainable * 2 * (4 if masters or not half else 2),
        "activations": _activations(inputs),
        "head": inputs.supervised * inputs.config.get_text_config().vocab_size * inputs.weight_bytes,
    }


def _activations(inputs: MemoryInputs) -> int:
    config = inputs.config.get_text_config()
    hidden = config.hidden_size
    heads = getattr(config, "num_attention_heads", 1)
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    query = heads * head_dim
    key_value = (getattr(config, "num_key_value_heads", None) or heads) * head_dim
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = inputs.tokens * inputs.weight_bytes * (4 * hidden + 2 * query + 2 * key_value + 4 * inner)
    if inputs.gradient_checkpointing:
        return int(config.num_hidden_layers * inputs.tokens * hidden * inputs.weight_bytes + layer)
    return int(config.num_hidden_layers * layer)


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
