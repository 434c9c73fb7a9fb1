"""The model types of the zoo: a tiny configuration of each, and what a run with it must report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 8,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Taken by every type whose config has the key (`sliding_window`: where its default is not None)."""
WITHOUT_DROPOUT = ("dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop", "embed_dropout", "resid_dropout")
WITHOUT_DROPOUT += ("attention_dropout", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob")
WITHOUT_DROPOUT += ("activation_dropout", "layerdrop", "residual_dropout", "router_jitter_noise", "input_jitter_noise")
COMMON |= dict.fromkeys(WITHOUT_DROPOUT, 0.0)
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "n_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
GEMMA4: dict[str, Any] = {
    **WINDOWS,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "vocab_size_per_layer_input": 300,
    "hidden_size_per_layer_input": 8,
}
STATE = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
ENCODER = {"bos_token_id": 1, "is_decoder": True}


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """One row of the zoo."""

    name: str
    """Name of the row: the model type, with a variant of it after a space."""
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration on top of `COMMON`."""
    refused: str | None = None
    """Error code with which a run ends before training; None: it trains."""

    @property
    def model_type(self) -> str:
        """The type as transformers calls it."""
        return self.name.split(" ")[0]


def tiny_config(row: ModelType) -> Any:
    """The configuration of a row: `COMMON` as far as its class has the keys, then the row's own."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[row.model_type]
    default = made()
    common = {**COMMON, **EXPERTS}
    settings = {key: value for key, value in common.items() if _has(default, key) and key not in row.config}
    if _value(default, "sliding_window") is None:
        settings.pop("sliding_window", None)
    return made(**settings, **row.config)


def _value(config: Any, key: str) -> Any:
    try:
        return getattr(config, key, None)
    except Exception:  # transformers refuses to read values that differ between layers
        return None


def _has(config: Any, key: str) -> bool:
    try:
        return hasattr(config, key) and not isinstance(getattr(type(config), key, None), property)
    except Exception:
        return True


def _row(name: str, refused: str | None = None, /, **config: Any) -> ModelType:
    return ModelType(name=name, config=config, refused=refused)


ROWS = (
    _row("llama"),
    _row(
        "llama llama3",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    _row(
        "llama yarn",
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
    ),
    _row(
        "llama dynamic",
        max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ),
    _row("mistral"),
    _row("mixtral"),
    _row("qwen2"),
    _row("qwen2 windows", use_sliding_window=True, max_window_layers=1, sliding_window=8),
    _row("qwen2_moe"),
    _row("qwen3"),
    _row("qwen3_moe"),
    _row("qwen3_next", **DELTA),
    _row("qwen3_5_text", **DELTA),
    _row("qwen3_5_moe_text", **DELTA),
    _row("gemma"),
    _row("gemma2", **WINDOWS, query_pre_attn_scalar=8, attn_logit_softcapping=3.0, final_logit_softcapping=3.0),
    _row("gemma3_text", **WINDOWS, query_pre_attn_scalar=8),
    _row(
        "gemma3n_text",
        **WINDOWS,
        vocab_size_per_layer_input=300,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.9, 0.0],
        intermediate_size=[48, 48],
    ),
    _row("gemma4_text", **GEMMA4),
    _row("gemma4_text experts", **{**GEMMA4, "hidden_size_per_layer_input": 0}, enable_moe_block=True, top_k_experts=2),
    _row(
        "gemma4_text shared keys",
        **{**GEMMA4, "layer_types": WINDOWS["layer_types"] * 2},
        num_hidden_layers=4,
        num_kv_shared_layers=2,
    ),
    _row("phi", num_key_value_heads=4),
    _row("phi3"),
    _row(
        "phi3 longrope",
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 16,
            "partial_rotary_factor": 1.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0, 3.0, 2.0, 5.0],
        },
    ),
    _row("phimoe"),
    _row("gpt2"),
    _row("gpt_neo", attention_types=[[["global", "local"], 1]], num_layers=2, window_size=8),
    _row("gpt_neox"),
    _row("gptj", rotary_dim=4),
    _row("gpt_bigcode"),
    _row("codegen", rotary_dim=4),
    _row("opt", ffn_dim=48, word_embed_proj_dim=32),
    _row("opt projected", ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    _row("bloom"),
    _row("falcon", alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    _row("falcon alibi", alibi=True, new_decoder_architecture=False, multi_query=False),
    _row("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=128, expansion_ratio=2),
    _row("stablelm"),
    _row("olmo"),
    _row("olmo2"),
    _row("olmo3", **WINDOWS),
    _row("olmoe"),
    _row("olmo_hybrid", **DELTA, num_key_value_heads=4),
    _row("granite", embedding_multiplier=3.0, logits_scaling=4.0, residual_multiplier=0.5, attention_multiplier=0.3),
    _row("granitemoe", embedding_multiplier=3.0, logits_scaling=4.0),
    _row("granitemoehybrid", **STATE, layer_types=["mamba", "attention"], shared_intermediate_size=48, mamba_expand=2),
    _row("deepseek_v2", **LATENT, topk_method="greedy"),
    _row("deepseek_v3", **LATENT),
    _row("glm"),
    _row("glm4"),
    _row("glm4_moe"),
    _row("cohere"),
    _row("cohere2", **WINDOWS),
    _row("smollm3"),
    _row("starcoder2"),
    _row("gpt_oss", **WINDOWS),
    _row("nemotron"),
    _row("helium"),
    _row("ernie4_5"),
    _row("ernie4_5_moe", moe_layer_start_index=0, moe_layer_end_index=1, moe_layer_interval=1),
    _row("hunyuan_v1_dense"),
    _row("exaone4", **WINDOWS),
    _row("seed_oss"),
    _row("dots1"),
    _row("minimax", layer_types=["linear_attention", "full_attention"], block_size=8),
    _row(
        "llama4_text",
        attention_chunk_size=8,
        interleave_moe_layer_step=1,
        intermediate_size_mlp=48,
        no_rope_layers=[1, 0],
        layer_types=["chunked_attention", "full_attention"],
    ),
    _row("mamba", state_size=8, time_step_rank=4),
    _row("mamba2", state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    _row("falcon_h1", **STATE, mamba_d_ssm=64, lm_head_multiplier=0.5, embedding_multiplier=2.0),
    _row(
        "jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    _row("bamba", **STATE, mamba_expand=2, attn_layer_indices=[1]),
    _row("lfm2", layer_types=["conv", "full_attention"], block_ff_dim=48, block_auto_adjust_ff_dim=False),
    _row("xglm", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4),
    _row("gpt_neox_japanese", bos_token_id=1),
    _row("bert decoder", **ENCODER),
    _row("bert", "BC064", bos_token_id=1),
    _row("roberta", "BC064", bos_token_id=1),
    _row("electra", "BC064", bos_token_id=1),
    _row(
        "bart",
        "BC064",
        d_model=32,
        decoder_layers=2,
        encoder_layers=1,
        decoder_ffn_dim=48,
        encoder_ffn_dim=48,
        decoder_attention_heads=4,
        encoder_attention_heads=4,
        bos_token_id=1,
    ),
)
