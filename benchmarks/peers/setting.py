"""What one comparison is: model shapes, optimizer, variants of the peers, and the figures computed from the runs.

Imports nothing heavy: the process that starts the frameworks must stay small. On Linux a child's peak resident size
begins at that of the process that started it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PRESETS: Mapping[str, Mapping[str, int]] = {
    "large-vocab": {"vocab_size": 152_000, "hidden_size": 384, "intermediate_size": 1152, "layers": 7, "heads": 6},
    "small-vocab": {"vocab_size": 16_000, "hidden_size": 512, "intermediate_size": 1408, "layers": 12, "heads": 8},
    "tiny": {"vocab_size": 2_000, "hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 2},
}
"""Qwen3-shaped, tied embeddings, heads of 64, two query heads to a key head: 72, 44 and 0.2 million parameters."""

MAX_LENGTH = 2048
OPTIMIZER: Mapping[str, float] = {"lr": 1e-4, "weight_decay": 0.01, "eps": 1e-8}
MAX_GRAD_NORM = 1.0
SEED = 42
PILOT_STEPS = 3
DTYPES = ("bf16", "fp32")
FRAMEWORKS: Mapping[str, str] = {
    "bumble": "BumbleCore",
    "trainer": "transformers Trainer",
    "trl": "TRL SFTTrainer",
}

SET: Mapping[str, list[str]] = {
    "default": [],
    "bf16-weights": ["model.master_weights=false", "train.float32_gradients=false"],
}
"""What `bumble run` is told beside the config, by variant."""

# Template and tokens: ChatML with the marks that say which tokens are the assistant's.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def model_settings(preset: str, vocabulary: int | None) -> dict[str, Any]:
    """Arguments of `Qwen3Config`."""
    shape = dict(PRESETS[preset])
    layers, heads = shape.pop("layers"), shape.pop("heads")
    shape["vocab_size"] = vocabulary or shape["vocab_size"]
    return {
        **shape,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": 64,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
    }


def variants(framework: str, dtype: str) -> list[str]:
    """The settings in which a framework can run; of a peer's, the fastest is measured.

    `autocast`: float32 weights, bf16 arithmetic (BumbleCore's `default`, bf16 weights with float32 masters, is the like
    of it). `bf16-weights`: the weights, their gradients and AdamW's state in bf16; less exact, and less memory.
    `padding-free`: TRL's own.
    """
    if framework == "bumble":
        return ["default", "bf16-weights"] if dtype == "bf16" else ["default"]
    kinds = ["autocast", "bf16-weights"] if dtype == "bf16" else ["fp32"]
    return [kind + end for kind in kinds for end in (("", "+padding-free") if framework == "trl" else ("",))]


def like(variant: str) -> str:
    """BumbleCore's variant whose weights and optimizer state are kept as those of a peer's `variant`."""
    return "bf16-weights" if variant.startswith("bf16-weights") else "default"


def tokens_per_second(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    """Real tokens (or pairs) over wall seconds of every step but the first, which warms up."""
    return sum(tokens[1:]) / sum(seconds[1:])


def summarize(runs: Sequence[Mapping[str, Any]], tokens: Sequence[int]) -> dict[str, Any]:
    """One framework's figures from its runs: medians of speed, the highest peak of memory, the first run's losses."""
    speeds = [tokens_per_second(tokens[: len(run["seconds"])], run["seconds"]) for run in runs]
    return {
        "variant": runs[0]["variant"],
        "tokens_per_second": statistics.median(speeds),
        "tokens_per_second_of_runs": speeds,
        "step_seconds": statistics.median(second for run in runs for second in run["seconds"][1:]),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "peak_cuda_bytes": max(run["peak_cuda_bytes"] for run in runs),
        "losses": runs[0]["losses"],
    }


def loss_distance(losses: Sequence[float], reference: Sequence[float]) -> float:
    """The largest relative difference of one step's loss."""
    if len(losses) != len(reference):
        return math.inf
    return max(abs(one - other) / abs(other) for one, other in zip(losses, reference, strict=True))


def ratios(
    figures: Mapping[str, Mapping[str, Any]],
    *,
    speed: str = "tokens_per_second",
    like: Callable[[str], str] = like,
) -> dict[str, Any] | None:
    """BumbleCore beside the faster peer (speed, and that peer's memory) and the leaner one, each time in the setting
    that is `like` the peer's; None without both sides."""
    own = {found["variant"]: found for name, found in figures.items() if name.split(" ")[0] == "bumble"}
    peers = {name: found for name, found in figures.items() if name.split(" ")[0] != "bumble"}
    peers = {name: found for name, found in peers.items() if like(found["variant"]) in own}
    if not peers:
        return None
    memory = "peak_cuda_bytes" if all(found["peak_cuda_bytes"] > 0 for found in own.values()) else "peak_rss_bytes"
    faster = max(peers, key=lambda name: peers[name][speed])
    leaner = min(peers, key=lambda name: peers[name][memory])
    beside_faster, beside_leaner = (own[like(peers[name]["variant"])] for name in (faster, leaner))
    return {
        "faster_peer": faster,
        "times_the_faster_peer": beside_faster[speed] / peers[faster][speed],
        "memory": memory,
        "share_of_its_memory": beside_faster[memory] / peers[faster][memory],
        "leaner_peer": leaner,
        "share_of_the_leaner_peers_memory": beside_leaner[memory] / peers[leaner][memory],
    }
