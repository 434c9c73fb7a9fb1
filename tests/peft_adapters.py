"""Adapters made by PEFT alone, of every shape that its LoRA config describes, and PEFT's own training of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lora_models import moved
from tiny_models import make_model

ATTENTION = ["q_proj", "v_proj"]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("qwen3", {"target_modules": ATTENTION}),
    "rslora": ("qwen3", {"target_modules": ATTENTION, "use_rslora": True}),
    "dora": ("qwen3", {"target_modules": ATTENTION, "use_dora": True}),
    "modules_to_save": ("qwen3", {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]}),
    "bias_lora_only": ("llama", {"target_modules": ATTENTION, "bias": "lora_only"}),
    "bias_all": ("llama", {"target_modules": ATTENTION, "bias": "all"}),
    "bias_all_in_full": ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f"]}),
    "lora_bias": ("llama", {"target_modules": ATTENTION, "lora_bias": True}),
    "tokens": ("qwen3", {"target_modules": ATTENTION, "trainable_token_indices": [3, 7, 9]}),
    "tokens_tied": ("qwen3_tied", {"target_modules": ATTENTION, "trainable_token_indices": [3, 7, 9]}),
    "tokens_by_layer": (
        "qwen3",
        {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [4]}},
    ),
    "embeddings": ("qwen3", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "patterns": (
        "qwen3",
        {"target_modules": [*ATTENTION, "up_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"up_proj": 32}},
    ),
    "layers": ("qwen3", {"target_modules": ATTENTION, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "exclude": ("qwen3", {"target_modules": r".*_proj", "exclude_modules": r".*(mlp|k_proj).*"}),
    "parameters": (
        "qwen3",
        {"target_modules": [], "target_parameters": ["mlp.up_proj.weight", "mlp.down_proj.weight"]},
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
}
"""Name to (family of `tiny_models`, options of PEFT's LoraConfig)."""


def make_base(shape: str) -> Any:
    """The base model of a shape, without dropout."""
    family = SHAPES[shape][0]
    return make_model(
        family, **({"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if family == "gpt2" else {})
    )


def peft_adapter(shape: str, directory: Path) -> Path:
    """An adapter of random values that PEFT made and saved, and its base next to it in `base/`."""
    from peft import LoraConfig, get_peft_model

    base, options = make_base(shape), SHAPES[shape][1]
    base.save_pretrained(directory / "base")
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
        model.peft_config["default"].base_model_name_or_path = str(directory / "base")
        moved(model).save_pretrained(directory / "adapter", save_embedding_layers=False)
    return directory / "adapter"


def peft_model(shape: str, adapter: Path) -> Any:
    """PEFT's own trainable model of an adapter."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(make_base(shape), adapter, is_trainable=True)


def trained(model: Any) -> dict[str, torch.Tensor]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved(directory: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(config, tensors) of an adapter directory."""
    config = json.loads((directory / "adapter_config.json").read_text())
    return config, load_file(directory / "adapter_model.safetensors")


def train(model: Any, steps: int = 3) -> list[float]:
    """A plain loop over ragged rows with accumulation; returns the losses."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    model.train()
    losses = []
    for step in range(steps):
        for length in (5, 9 + step):
            ids = torch.arange(3, 3 + length)[None]
            loss = model(input_ids=ids, labels=ids).loss / 2
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses
