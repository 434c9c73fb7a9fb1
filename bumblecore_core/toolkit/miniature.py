"""A small copy of a model: the same classes, kinds of layers and options, with few layers and narrow ones.

What attention, masks, windows, chunks, state-space layers, routers and position embeddings do does not depend on how
wide a model is. So causality and isolation can be proven on a copy that takes milliseconds (see `proofs`), before the
model itself is there. Limits on lengths become a few tokens, so that short documents lie beyond them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bumblecore_core.toolkit.miniature_layers import chosen_layers, layer_values

WITHIN = 8
"""A limit that documents of a run exceed."""
THRESHOLD = 16
"""The same for a number of positions beyond which position embeddings change."""
BETWEEN = 64
"""A limit that micro-batches of a run exceed, and no document does."""
BEYOND = 512
"""A limit that nothing in a run exceeds; the number of positions too."""
VOCABULARY = 256
HIDDEN, HEADS, HEAD_WIDTH = 64, 4, 16
INNER = 96
MOST_PARAMETERS = 40_000_000
"""A larger copy would take too long to build and to run."""
PROJECTIONS = (
    "attention_hidden_size",
    "embedding_size",
    "input_embedding_size",
    "lru_width",
    "output_embedding_size",
    "word_embed_proj_dim",
)
"""Widths that keep their ratio to the hidden size."""
WIDTHS: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim"), HIDDEN),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads", "swa_num_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "d_head", "dim_head", "swa_head_dim", "global_head_dim"), HEAD_WIDTH),
    **dict.fromkeys(("kv_channels", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), HEAD_WIDTH),
    "qk_head_dim": 2 * HEAD_WIDTH,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_head_dim"), 32),
    "rotary_dim": HEAD_WIDTH // 2,
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "d_inner", "dff", "dim_ff", "feed_forward_size"), INNER
    ),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp", "dense_intermediate_size"), INNER),
    **dict.fromkeys(("shared_intermediate_size", "shared_expert_intermediate_size"), INNER),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), INNER),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 32),
    "ffn_hidden_size": 4 * HIDDEN,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), HEAD_WIDTH),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank", "adapter_rank"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 2 * HEADS),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), HEAD_WIDTH),
    "mamba_d_ssm": 2 * HIDDEN,
    **dict.fromkeys(("mamba_expand", "expand"), 2),
}
KEY_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "swa_num_key_value_heads",
    "num_global_key_value_heads",
    "num_query_groups",
)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
EXPERT_GROUPS = ("n_group", "num_expert_group")
AT_MOST_TWO = ("mamba_n_groups", "mamba_ngroups", "n_groups")
VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "unpadded_vocab_size")
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id")
CHUNKS = ("chunk_size", "mamba_chunk_size", "block_size")
"""Tokens that one step of an algorithm takes: its result must not depend on them."""
LIMITS = (
    "attention_chunk_size",
    "attention_window_size",
    "index_topk",
    "index_topk_blocks",
    "keep_window_size",
    "local_attention",
    "local_attention_window_len",
    "log_scaling_n_floor",
    "rel_extent",
    "sliding_window",
    "sliding_window_size",
    "window_size",
)
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_target_positions",
    "context_length",
    "model_max_length",
)


@dataclass(frozen=True)
class RunSizes:
    """The lengths that a run reaches; the limits of a config stand in the same relation to these as those of its
    miniature to the documents of a proof."""

    document: int = 1 << 60
    """Tokens of the longest document."""
    batch: int = 1 << 60
    """Tokens of the largest micro-batch."""


def small_configs(config: Any, sizes: RunSizes) -> Iterator[Any]:
    """Small copies of a transformers config, to be tried in this order: narrow ones with one layer and with two layers
    of each kind, and one that keeps every width."""
    yield _small(config, sizes, narrow=True, of_each=1)
    yield _small(config, sizes, narrow=True, of_each=2)
    yield _small(config, sizes, narrow=False, of_each=1)


def make_miniature(build: Callable[[], Any]) -> Any:
    """The model that `build` makes from a small config, in evaluation mode, with random weights that are large enough
    for every part to matter (gates and biases often start at 0). The global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        with torch.no_grad():
            for parameter in _parameters(model):
                if parameter.dim() >= 2:
                    parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def _parameters(model: Any) -> Iterator[Any]:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            yield parameter


def _small(config: Any, sizes: RunSizes, *, narrow: bool, of_each: int) -> Any:
    small = copy.deepcopy(config)
    text = small.get_text_config()
    if text is not small:
        for name in small.sub_configs:
            part = getattr(small, name, None)
            if part is not None and part is not text:
                _set(part, _first_layers(part))
    values = dict(vars(text))
    layers = text.num_hidden_layers
    changes = _length_values(values, sizes)
    if narrow:
        changes |= _narrow_values(values | changes)
    kept = chosen_layers(values, layers, of_each=of_each)
    _set(text, changes | layer_values(values | changes, layers, kept))
    return small


def _first_layers(config: Any) -> dict[str, Any]:
    """The values that leave one layer of a tower that is not the language model."""
    names = ("depth", "num_hidden_layers", "num_layers", "n_layers", "encoder_layers")
    return {name: 1 for name in names if isinstance(vars(config).get(name), int)}


def _set(config: Any, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        setattr(config, name, value)


def _length_values(values: Mapping[str, Any], sizes: RunSizes) -> dict[str, Any]:
    """Vocabulary, experts and limits on lengths."""
    changed: dict[str, Any] = {}
    groups = 2 if any((_number(values.get(name)) or 0) > 1 for name in EXPERT_GROUPS) else 1
    dynamic = any(rope.get("rope_type") == "dynamic" for rope in _ropes(values.get("rope_parameters")))
    for name, value in values.items():
        number = _number(value)
        if name in SPECIAL_IDS and value is not None:
            changed[name] = [_small_id(each) for each in value] if isinstance(value, list) else _small_id(value)
        elif name == "rope_parameters" and isinstance(value, dict):
            changed[name] = _small_rope(value, sizes)
        elif not number:  # absent, off, or no number
            continue
        elif name in VOCABULARIES:
            changed[name] = VOCABULARY
        elif name in EXPERTS:
            changed[name] = 4 * groups
        elif name in CHOSEN_EXPERTS:
            changed[name] = min(number, 2)
        elif name in EXPERT_GROUPS:
            changed[name] = groups
        elif name == "topk_group":
            changed[name] = 1
        elif name in CHUNKS:
            changed[name] = WITHIN
        elif name in LIMITS:
            changed[name] = _limit(number, sizes)
        elif name == "original_max_position_embeddings":
            changed[name] = _limit(number, sizes, within=THRESHOLD)
        elif name in POSITIONS:  # without rope scaling, a buffer of this size may be too small for a micro-batch
            changed[name] = _limit(number, sizes, within=THRESHOLD) if dynamic or number >= sizes.document else BEYOND
    return changed


def _limit(value: int, sizes: RunSizes, *, within: int = WITHIN) -> int:
    """A limit on lengths that the documents of a proof exceed if those of the run exceed `value`."""
    if value >= sizes.batch:
        return BEYOND
    return BETWEEN if value >= sizes.document else within


def _small_rope(rope: Mapping[str, Any], sizes: RunSizes) -> dict[str, Any]:
    """`rope_parameters`, which some models have for each kind of layer."""
    small: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            small[name] = _small_rope(value, sizes)
        elif name == "original_max_position_embeddings" and _number(value):
            small[name] = _limit(value, sizes, within=THRESHOLD)
        else:
            small[name] = value
    return small


def _ropes(rope: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(rope, dict):
        yield rope
        for value in rope.values():
            yield from _ropes(value)


def _small_id(value: Any) -> Any:
    """An id of a special token, below those that proofs use as text."""
    return min(value, 7) if _number(value) else value


def _narrow_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Widths and numbers of heads."""
    hidden = next((values[name] for name in ("hidden_size", "n_embd", "d_model") if _number(values.get(name))), None)
    heads = next((values[name] for name in ("num_attention_heads", "n_head") if _number(values.get(name))), None)
    head_width = _number(values.get("qk_rope_head_dim")) or _number(values.get("head_dim"))
    if head_width is None and hidden and heads:
        head_width = hidden // heads
    changed: dict[str, Any] = {}
    for name, value in values.items():
        number = _number(value)
        if name in WIDTHS and isinstance(value, list):
            changed[name] = [WIDTHS[name]] * len(value)
        elif name == "rope_parameters" and isinstance(value, dict) and head_width:
            changed[name] = _narrow_rope(value, HEAD_WIDTH / head_width)
        elif not number:
            continue
        elif name in WIDTHS:
            changed[name] = WIDTHS[name]
        elif name == "index_n_heads":
            changed[name] = min(number, 32)  # scores of few are often all 0: the choice among equals is arbitrary
        elif name in KEY_HEADS:
            changed[name] = HEADS if number == heads else min(number, 2)
        elif name in AT_MOST_TWO:
            changed[name] = min(number, 2)
        elif name in PROJECTIONS and hidden:
            changed[name] = max(HIDDEN // 2, HIDDEN * number // hidden)
        elif name == "linear_num_key_heads":
            changed[name] = HEADS if number == values.get("linear_num_value_heads") else 2
        elif name == "linear_num_value_heads" or name == "linear_num_heads":
            changed[name] = HEADS
        elif name == "n_mamba_heads":
            changed[name] = 2 * HEADS if "mamba_headdim" in values else min(number, 2)
        elif name == "attention_head_dim" and hidden and heads:
            changed[name] = HEAD_WIDTH * max(1, number * heads // hidden)
    if "num_heads" in values and "state_size" in values:  # Mamba 2 has no other heads
        changed["num_heads"] = 2 * HEADS
    return changed


def _narrow_rope(rope: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """`rope_parameters` with a factor for each of fewer frequencies."""
    small = dict(rope)
    for name, value in rope.items():
        if isinstance(value, dict):
            small[name] = _narrow_rope(value, ratio)
        elif name in ("short_factor", "long_factor") and isinstance(value, list):
            count = max(1, round(len(value) * ratio))
            small[name] = [value[place * len(value) // count] for place in range(count)]
        elif name == "mrope_section" and isinstance(value, list):
            sections = [max(1, round(part * ratio)) for part in value]
            small[name] = [round(sum(value) * ratio) - sum(sections[1:]), *sections[1:]]
    return small


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
