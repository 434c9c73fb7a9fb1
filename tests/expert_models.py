"""Tiny mixtures of experts, and a run's module around them, for tests of routers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch.nn import functional

from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.module import TrainModule
from bumblecore_core.run.router_loss import router_training
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_core.values import Batch, StepOutput
from tiny_models import ROTARY, SPECIAL_TOKENS, VOCABULARY, supervised

EXPERTS, TOP_K = 6, 2
_SHARED = {**SPECIAL_TOKENS, **ROTARY, "num_experts_per_tok": TOP_K}
_QWEN = {"num_experts": EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "head_dim": 8}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {**_SHARED, "num_local_experts": EXPERTS},
    "Qwen3Moe": {**_SHARED, **_QWEN},
    "Olmoe": {**_SHARED, "num_experts": EXPERTS},
    "GptOss": {**_SHARED, "num_local_experts": EXPERTS, "head_dim": 8},
    "Qwen3Next": {**_SHARED, **_QWEN, **_LINEAR},
    "JetMoe": {**_SHARED, "num_local_experts": EXPERTS, "kv_channels": 8},
    "MiniMax": {
        **_SHARED,
        "num_local_experts": EXPERTS,
        "head_dim": 8,
        "block_size": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "Dbrx": {
        **SPECIAL_TOKENS,
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": EXPERTS, "moe_top_k": TOP_K},
    },
}
"""Types whose router loss transformers computes. JetMoE has routers in its attention too, DBRX's return logits only."""


def make_config(family: str, **changes: Any) -> Any:
    """The configuration of one of `FAMILIES`."""
    return getattr(transformers, f"{family}Config")(**{**FAMILIES[family], **changes})


def make_experts(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A model in training mode whose weights are large enough for the load to be uneven."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).train()
    model.set_experts_implementation("eager")  # the default one has no float64
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


class Stage:
    """Trains every token of every document."""

    def step(self, *, policy: Any, batch: Batch, loss: Any) -> StepOutput:
        """The sum over all positions but the last one of each document."""
        places = supervised(batch)
        hidden, head = policy.project(batch=batch, positions=places)
        return loss(hidden=hidden, head=head, targets=batch.input_ids[0, places + 1])


def cross_entropy(*, hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> StepOutput:
    """A token loss in the dtype of the model."""
    logits = head.logits(hidden)
    total = functional.cross_entropy(
        logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="sum"
    )
    return StepOutput(loss_sum=total, count=len(targets))


def make_module(model: Any, setting: Any, *, stage: Any = None) -> TrainModule:
    """What an engine wraps, for `model.router_aux_loss: setting`."""
    routers, _ = router_training(model, setting)
    plugin = Plugin("stages", "every", "expert_models")
    module = TrainModule(
        model=model,
        stage=stage or Stage(),
        stage_plugin=plugin,
        loss=cross_entropy,
        loss_plugin=Plugin("losses", "plain", "expert_models"),
        routers=routers,
    )
    module.policy = make_policy(model)
    return module


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients by name, which are taken away."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], rtol: float = 1e-9) -> None:
    """Equal relative to the largest value of each."""
    assert left.keys() == right.keys()
    for name, gradient in right.items():
        atol = rtol * float(gradient.abs().max())
        torch.testing.assert_close(
            left[name], gradient, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
