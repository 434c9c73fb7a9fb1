"""Model types as the zoo trains them: a tiny configuration, and what a run with it must report."""

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


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """One row of the zoo."""

    name: str
    """Name of the row: the model type, with a variant of it after a space."""
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration on top of `COMMON`."""
    one_per_pass: bool = False
    """Whether its documents run through the model one after another, since it would mix them up in one sequence."""
    trains_pairs: bool = True
    """Whether DPO trains; refused (BC098) where the states of a shared prompt change with the length of a reply."""
    lora_modules: tuple[str, ...] = ()
    """Modules that LoRA adapts in the comparison with PEFT; empty: all linear layers."""
    plain_attention: str = "eager"
    """Attention of the plain loop; another one where transformers' eager attention differs from what is used."""
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
