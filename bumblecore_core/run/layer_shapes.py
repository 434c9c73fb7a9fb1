"""The shapes of a model's layers, as its config.json states them: what estimates of memory and FLOPs are made from.

Configs spell the same thing in several ways, state it for each layer, or leave it out. A shape that is not stated is
None, never a guess and never an error: the estimates print it as unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INNER_SIZES = ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size", "dff", "d_inner")
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_EXPERTS = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "num_experts_per_token")
FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
NEO_KINDS = {"global": FULL, "local": SLIDING}


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """One layer. A width that config.json does not state is None."""

    kind: str
    """`full_attention`, `sliding_attention`, or another of transformers' layer types (`linear_attention`, …)."""
    heads: int | None
    """Attention heads (queries)."""
    key_width: int | None
    """Width of a head's query and key."""
    value_width: int | None
    """Width of a head's value."""
    key_value_heads: int | None
    inner: int | None
    """Width of the MLP that a token passes through, the chosen experts together."""
    window: int | None
    """Keys that a query sees at most; None: all before it."""
    chunk: int | None
    """Positions in a chunk of chunked attention, whose queries see no other chunk; None for other kinds."""


def text_config(config: Any) -> Any:
    """The config of the language model in `config`; `config` itself where transformers finds several or none."""
    try:
        return config.get_text_config()
    except Exception:
        return config


def number(config: Any, *names: str) -> int | None:
    """The first of these values that is a positive integer; None where none is, or where the config raises (values that
    differ between layers)."""
    for name in names:
        value = _read(config, name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def layer_shapes(config: Any) -> list[LayerShape]:
    """The layers of a language model's config (`text_config`), empty where it does not state how many there are."""
    count = number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers") or 0
    kinds = _kinds(config, count)
    return [_shape(_layer_config(config, layer), layer, kinds[layer]) for layer in range(count)]


def active_share(config: Any) -> float:
    """The share of a layer's experts that a token passes through; 1 where there are none."""
    experts, chosen = number(config, *EXPERT_COUNTS), number(config, *CHOSEN_EXPERTS)
    return chosen / experts if experts and chosen else 1.0


def _read(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _kinds(config: Any, count: int) -> list[str]:
    kinds = _read(config, "layer_types")
    if _is_list(kinds, count):
        return [str(kind) for kind in kinds]
    neo = _read(config, "attention_layers")
    if _is_list(neo, count):
        return [NEO_KINDS.get(str(kind), str(kind)) for kind in neo]
    if number(config, "num_attention_heads", "n_head", "n_heads") is None:
        return [LINEAR] * count
    windowed = _read(config, "sliding_window") and _read(config, "use_sliding_window") is not False
    return [SLIDING if windowed else FULL] * count


def _is_list(values: Any, count: int) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count


def _layer_config(config: Any, layer: int) -> Any:
    """The config of one layer where transformers keeps one for each."""
    try:
        return config.per_layer_config[layer]
    except Exception:
        return config


def _shape(config: Any, layer: int, kind: str) -> LayerShape:
    heads = number(config, "num_attention_heads", "n_head", "n_heads")
    key_width, value_width = _head_widths(config, heads)
    return LayerShape(
        kind=kind,
        heads=heads,
        key_width=key_width,
        value_width=value_width,
        key_value_heads=number(config, "num_key_value_heads", "num_kv_heads") or heads,
        inner=_inner(config, layer),
        window=number(config, "sliding_window", "attention_window_size", "window_size") if kind == SLIDING else None,
        chunk=number(config, "attention_chunk_size") if kind == CHUNKED else None,
    )


def _head_widths(config: Any, heads: int | None) -> tuple[int | None, int | None]:
    """(of query and key, of value) of a head. Multi-head latent attention has a part with and one without rotation."""
    rotated, plain = number(config, "qk_rope_head_dim"), number(config, "qk_nope_head_dim")
    value = number(config, "v_head_dim")
    if rotated and plain and value:
        return rotated + plain, value
    hidden = number(config, "hidden_size")
    width = number(config, "attention_head_dim", "head_dim") or (hidden // heads if hidden and heads else None)
    return width, value or width


def _inner(config: Any, layer: int) -> int | None:
    """Four times the hidden size where the config states no width: what such models have."""
    widths = _read(config, "intermediate_size")
    if isinstance(widths, Sequence) and not isinstance(widths, str):
        dense = widths[layer] if layer < len(widths) and isinstance(widths[layer], int) else None
    else:
        dense = number(config, *INNER_SIZES)
    chosen = number(config, *CHOSEN_EXPERTS)
    if chosen and number(config, *EXPERT_COUNTS):
        of_expert = number(config, "moe_intermediate_size", *INNER_SIZES)
        shared = number(config, "shared_expert_intermediate_size", "shared_intermediate_size") or 0
        return max(dense or 0, chosen * of_expert + shared) if of_expert else dense
    hidden = number(config, "hidden_size")
    return dense or (4 * hidden if hidden else None)
