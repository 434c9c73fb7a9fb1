"""What a comparison on preference pairs is: settings of both sides, and the figures computed from the runs.

Imports nothing heavy, for the reason given in `setting.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from setting import OPTIMIZER
from setting import like as like_in_full

PAIR_OPTIMIZER: Mapping[str, float] = {**OPTIMIZER, "lr": 5e-6}
BETA = 0.1
LORA_RANK, LORA_ALPHA = 8, 16
METHODS = ("full", "lora")
FRAMEWORKS: Mapping[str, str] = {"bumble": "BumbleCore", "trl": "TRL DPOTrainer"}


def trl_variants(dtype: str) -> list[str]:
    """`autocast`: float32 weights, bf16 arithmetic; `bf16-weights`: all weights in bf16, but for LoRA's, which PEFT
    keeps in float32. `precompute`: the reference's log-probabilities before training, rather than in each step."""
    kinds = ["autocast", "bf16-weights"] if dtype == "bf16" else ["fp32"]
    return [kind + end for kind in kinds for end in ("", "+precompute")]


def own_variants(method: str, dtype: str) -> list[str]:
    """BumbleCore's: see `setting.SET`."""
    return ["default", "bf16-weights"] if (method, dtype) == ("full", "bf16") else ["default"]


def like_of(method: str) -> Callable[[str], str]:
    """Says which of BumbleCore's variants keeps trained weights and optimizer state as a variant of TRL's does. With
    LoRA that is `default` beside all of them: both sides train A and B in float32."""
    return like_in_full if method == "full" else lambda variant: "default"


def pairs_per_second(pairs: Sequence[int], seconds: Sequence[float]) -> float:
    """Over wall seconds of every step but the first, which warms up."""
    return sum(pairs[1:]) / sum(seconds[1:])


def whole_run_pairs_per_second(pairs: Sequence[int], seconds: Sequence[float], reference_seconds: float) -> float:
    """Over wall seconds of every step, the first too, and of the reference's pass before them."""
    return sum(pairs) / (sum(seconds) + reference_seconds)


def summarize(runs: Sequence[Mapping[str, Any]], pairs: Sequence[int]) -> dict[str, Any]:
    """One candidate's figures from its runs: medians of times, the highest peak of memory, the first run's losses."""

    def median(of: Callable[[Mapping[str, Any]], float]) -> float:
        return statistics.median(of(run) for run in runs)

    return {
        "variant": runs[0]["variant"],
        "pairs_per_second": median(lambda run: pairs_per_second(pairs, run["seconds"])),
        "whole_run_pairs_per_second": median(
            lambda run: whole_run_pairs_per_second(pairs, run["seconds"], run["reference_seconds"])
        ),
        "reference_seconds": median(lambda run: run["reference_seconds"]),
        "step_seconds": median(lambda run: statistics.median(run["seconds"][1:])),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "peak_cuda_bytes": max(run["peak_cuda_bytes"] for run in runs),
        "losses": runs[0]["losses"],
        "margins": runs[0]["margins"],
    }


def margin_distance(margins: Sequence[float], reference: Sequence[float]) -> float:
    """The largest difference of one step's mean reward margin, by the largest margin there is. Losses near log 2 would
    look alike whatever was trained; margins do not."""
    if len(margins) != len(reference):
        return math.inf
    largest = max(map(abs, reference))
    differences = [abs(one - other) for one, other in zip(margins, reference, strict=True)]
    return max(differences) / largest if largest else max(differences)
