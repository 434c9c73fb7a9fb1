"""The rows of the zoo: model types and variants of them that are trained against a plain loop, or refused."""

from __future__ import annotations

from typing import Any

from zoo.model_types import ModelType

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
BART = {
    **{"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48},
    **{"decoder_attention_heads": 4, "encoder_attention_heads": 4},
}


def _row(name: str, /, **config: Any) -> ModelType:
    return ModelType(name=name, config=config)


def _one_per_pass(name: str, /, *lora_modules: str, **config: Any) -> ModelType:
    return ModelType(name=name, config=config, one_per_pass=True, lora_modules=lora_modules)


def _rope_of_length(name: str, /, **config: Any) -> ModelType:
    """Position embeddings change where a document is longer than a threshold, which some rows of the zoo are."""
    return ModelType(name=name, config=config, one_per_pass=True, trains_pairs=False)


def _refused(name: str, code: str, /, **config: Any) -> ModelType:
    return ModelType(name=name, config=config, refused=code)


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
    _rope_of_length(
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
    _one_per_pass("qwen3_next", **DELTA),
    _one_per_pass("qwen3_5_text", **DELTA),
    _one_per_pass("qwen3_5_moe_text", **DELTA),
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
    _rope_of_length(
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
    _one_per_pass("bloom"),
    _row("falcon", alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    # transformers' sdpa rounds and scales the linear biases differently from its eager attention.
    ModelType(
        name="falcon alibi",
        config={"alibi": True, "new_decoder_architecture": False, "multi_query": False},
        plain_attention="sdpa",
    ),
    _one_per_pass("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=128, expansion_ratio=2),
    _row("stablelm"),
    _row("olmo"),
    _row("olmo2"),
    _row("olmo3", **WINDOWS),
    _row("olmoe"),
    _one_per_pass("olmo_hybrid", **DELTA, num_key_value_heads=4),
    _row("granite", embedding_multiplier=3.0, logits_scaling=4.0, residual_multiplier=0.5, attention_multiplier=0.3),
    _row("granitemoe", embedding_multiplier=3.0, logits_scaling=4.0),
    _one_per_pass(
        "granitemoehybrid",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        **STATE,
        layer_types=["mamba", "attention"],
        shared_intermediate_size=48,
        mamba_expand=2,
    ),
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
    _one_per_pass("minimax", layer_types=["linear_attention", "full_attention"], block_size=8),
    _row(
        "llama4_text",
        attention_chunk_size=8,
        interleave_moe_layer_step=1,
        intermediate_size_mlp=48,
        no_rope_layers=[1, 0],
        layer_types=["chunked_attention", "full_attention"],
    ),
    _one_per_pass("mamba", "in_proj", "x_proj", state_size=8, time_step_rank=4),
    _one_per_pass("mamba2", "in_proj", state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    _one_per_pass(
        "falcon_h1",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        **STATE,
        mamba_d_ssm=64,
        lm_head_multiplier=0.5,
        embedding_multiplier=2.0,
    ),
    _one_per_pass(
        "jamba",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    _one_per_pass("bamba", "q_proj", "k_proj", "v_proj", "o_proj", **STATE, mamba_expand=2, attn_layer_indices=[1]),
    _one_per_pass("lfm2", layer_types=["conv", "full_attention"], block_ff_dim=48, block_auto_adjust_ff_dim=False),
    _one_per_pass("xglm", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4),
    _row("gpt_neox_japanese", bos_token_id=1),
    _row("bert decoder", **ENCODER),
    _one_per_pass(
        "bart decoder",
        **BART,
        is_decoder=True,
        is_encoder_decoder=False,
        bos_token_id=1,
    ),
    _refused("bert", "BC064", bos_token_id=1),
    _refused("roberta", "BC064", bos_token_id=1),
    _refused("electra", "BC064", bos_token_id=1),
    _refused(
        "bart",
        "BC064",
        **BART,
        bos_token_id=1,
    ),
)
