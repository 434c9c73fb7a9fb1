"""Configs of model families that treat documents differently, small enough for tests, and what is proven of them."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

VOCABULARY = 96
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROTARY = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2, "topk_group": 1}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 3.0, 2.0, 5.0],
    "original_max_position_embeddings": 16,
}
CAUSAL = "a token's hidden state changes with the tokens after it"
NEIGHBOURS = "change with the tokens of the documents around it"
ALONE = "differ from those that it has alone"
WITHOUT_SDPA = "does not support an attention implementation"
FIXED = "no other can be added"

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, str | None]]] = {
    "llama": ("llama", ROTARY, {"varlen": None, "sdpa": None, "eager": None}),
    "windows": ("mistral", {**ROTARY, "sliding_window": 16}, {"varlen": None, "sdpa": None}),
    "kinds of layers": (
        "gemma3_text",
        {**ROTARY, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
        {"varlen": None, "sdpa": None},
    ),
    "chunks": (
        "llama4_text",
        {
            **ROTARY,
            "attention_chunk_size": 16,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
        },
        {"varlen": "longer than the chunks", "sdpa": None},
    ),
    "experts": (
        "qwen3_moe",
        {**ROTARY, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        {"varlen": None},
    ),
    "sparse indexer": (
        "deepseek_v32",
        {**ROTARY, **LATENT, **EXPERTS, "num_key_value_heads": 4, "index_topk": 8, "index_n_heads": 32}
        | {"index_head_dim": 16, "first_k_dense_replace": 1},
        {"varlen": "the model fails with it", "sdpa": None},
    ),
    "long rope": (
        "phi3",
        {**ROTARY, "rope_parameters": LONG_ROPE, "original_max_position_embeddings": 16},
        {"varlen": ALONE, "sdpa": ALONE, "eager": ALONE},
    ),
    "dynamic rope": (
        "llama",
        {**ROTARY, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
        {"varlen": ALONE, "sdpa": ALONE, "eager": ALONE},
    ),
    "alibi in a mask": ("falcon", {**SIZES, "alibi": True, "multi_query": False}, {"varlen": FIXED, "sdpa": None}),
    "bloom": ("bloom", SIZES, {"varlen": CAUSAL, "sdpa": WITHOUT_SDPA, "eager": NEIGHBOURS}),
    "mpt": (
        "mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
        {"varlen": "the model fails with it", "sdpa": WITHOUT_SDPA, "eager": NEIGHBOURS},
    ),
    "masks of its own": ("gpt_neox_japanese", SIZES, {"varlen": CAUSAL, "sdpa": WITHOUT_SDPA, "eager": None}),
    "positions not passed on": ("stablelm", ROTARY, {"varlen": NEIGHBOURS, "sdpa": None}),
    "local attention": (
        "gpt_neo",
        {**SIZES, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
        {"varlen": FIXED, "sdpa": WITHOUT_SDPA, "eager": None},
    ),
    "learned positions": ("gpt2", SIZES, {"varlen": None, "sdpa": None, "eager": None}),
    "state space": ("mamba", {**SIZES, "state_size": 4, "time_step_rank": 4}, {"varlen": NEIGHBOURS}),
    "convolution": (
        "lfm2",
        {**ROTARY, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        {"varlen": NEIGHBOURS, "sdpa": NEIGHBOURS, "eager": NEIGHBOURS},
    ),
    "linear attention": (
        "minimax",
        {**ROTARY, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 4, "block_size": 16},
        {"varlen": NEIGHBOURS, "sdpa": NEIGHBOURS},
    ),
    "decoder of an encoder": ("megatron-bert", {**SIZES, **NO_DROPOUT, "is_decoder": True}, {"varlen": CAUSAL}),
    "encoder": ("bert", {**SIZES, **NO_DROPOUT}, {"varlen": CAUSAL, "sdpa": CAUSAL, "eager": CAUSAL}),
}
"""Name to (model type, config, by attention a part of what is wrong with the model, or None where it is exact). The
documents are longer than every limit of the config."""


def family_config(family: str, **changes: Any) -> Any:
    """The transformers config of a family."""
    model_type, values, _ = FAMILIES[family]
    return AutoConfig.for_model(model_type, **{**values, **changes})
