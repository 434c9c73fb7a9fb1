"""Tiny mixture-of-experts and state-space models, for tests of which parts an adapter reaches."""

from __future__ import annotations

from typing import Any

import torch

from tiny_models import COMMON, ROTARY, SPECIAL_TOKENS

MOE = {**ROTARY, "head_dim": 8, "num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
TYPES: dict[str, dict[str, Any]] = {
    "mixtral": {**MOE, "num_local_experts": 4},
    "qwen3_moe": {**MOE, "decoder_sparse_step": 1, "mlp_only_layers": [1]},
    "gpt_oss": {**MOE, "num_local_experts": 4, "sliding_window": 4},
    "llama4_text": {**MOE, "num_local_experts": 4, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48},
    "phimoe": {**MOE, "num_local_experts": 4, "router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "glm4_moe": {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "deepseek_v32": {
        **{**MOE, **MLA, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2},
        **{"topk_group": 1, "first_k_dense_replace": 1, "index_topk": 4, "index_n_heads": 2, "index_head_dim": 16},
    },
    "mamba": {**COMMON, "state_size": 8, "time_step_rank": 4},
    "jamba": {
        **{**MOE, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
        **{"expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    },
    "falcon": {**COMMON, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2, "hidden_dropout": 0.0},
}
"""Options of the config by model type."""


def make_moe(model_type: str) -> Any:
    """A model of random weights, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**SPECIAL_TOKENS, **TYPES[model_type]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    return model
