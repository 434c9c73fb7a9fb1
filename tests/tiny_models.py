"""Tiny causal language models of several families, and padding-free batches, for tests of numerics."""

from __future__ import annotations

import torch
import transformers

from bumblecore_core.values import Batch
from bumblecore_plugins.attention import bumble_attentions

VOCABULARY = 61
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROTARY = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
FAMILIES = {
    "qwen3": ("Qwen3", {**ROTARY, "head_dim": 8}),
    "qwen3_tied": ("Qwen3", {**ROTARY, "head_dim": 8, "tie_word_embeddings": True}),
    "qwen3_window": (
        "Qwen3",
        {**ROTARY, "head_dim": 8, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
    ),
    "llama": ("Llama", {**ROTARY, "attention_bias": True}),
    "mistral": ("Mistral", {**ROTARY, "sliding_window": 4}),
    "gemma2": (
        "Gemma2",
        {**ROTARY, "head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 1.5, "attn_logit_softcapping": 2.0},
    ),
    "granite": ("Granite", {**ROTARY, "logits_scaling": 3.0}),
    "cohere": ("Cohere", {**ROTARY, "logit_scale": 0.25}),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}
"""Name to (transformers prefix, configuration): windows, soft caps, logit scales, tied heads, absolute positions."""
RECURRENT = {
    "mamba": ("Mamba", {**COMMON, "state_size": 4, "time_step_rank": 4}),
    "lfm2": (
        "Lfm2",
        {**ROTARY, "layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "block_auto_adjust_ff_dim": False},
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            **ROTARY,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
}
"""The same for models that do not keep documents apart."""
LONG_ROPES = {
    "dynamic": (
        "Llama",
        {
            **ROTARY,
            "max_position_embeddings": 8,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
        },
    ),
    "longrope": (
        "Phi3",
        {
            **ROTARY,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0, 3.0, 2.0, 5.0],
                "original_max_position_embeddings": 8,
            },
        },
    ),
}
"""The same for rotary embeddings that depend on the longest document once one exceeds 8 tokens."""
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def make_model(
    family: str, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32, **changes
) -> torch.nn.Module:
    """A model with weights large enough for every part to matter, in evaluation mode."""
    prefix, options = {**FAMILIES, **RECURRENT, **LONG_ROPES}[family]
    config = getattr(transformers, f"{prefix}Config")(**{**SPECIAL_TOKENS, **options, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.to(dtype)


def make_batch(lengths: tuple[int, ...], *, seed: int = 0) -> Batch:
    """Documents of random tokens, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        input_ids=torch.randint(3, VOCABULARY, (1, sum(lengths)), generator=generator),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        document_lengths=lengths,
        rows=tuple(range(len(lengths))),
        count=0,
    )


def register_attentions() -> None:
    """Lets models be made with each built-in attention implementation, under its own name."""
    for record in bumble_attentions():
        functions = record.load()
        if functions.forward is not None:
            transformers.AttentionInterface.register(record.name, functions.forward)
        if functions.mask is not None:
            transformers.AttentionMaskInterface.register(record.name, functions.mask)


def supervised(batch: Batch) -> torch.Tensor:
    """The positions that have a next token in their document."""
    last = batch.cu_seqlens[1:].long() - 1
    return torch.tensor(sorted(set(range(batch.tokens)) - set(last.tolist())))
