"""Training written plainly: each row by itself, eager attention, float32, torch's own optimizer (the naive twin)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

LEARNING_RATE, MOMENTUM, CLIP, BETA = 0.05, 0.9, 1.0, 0.1


@dataclass(frozen=True)
class Row:
    """Token ids of a document and which of them are trained."""

    ids: list[int]
    trained: list[bool]

    @property
    def targets(self) -> int:
        """How many tokens are predicted and trained: the first one has nothing before it."""
        return sum(self.trained[1:])


def load_plain(directory: Path, attention: str, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model, every weight of the files in place."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation=attention, dtype=dtype, output_loading_info=True
    )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    return model


def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """(T, V) float32 logits of one document in a model that has seen no other: dynamic rotary embeddings remember the
    longest document, so that they are set back."""
    for module in model.modules():
        if hasattr(module, "original_max_seq_len") and hasattr(module, "original_inv_freq"):
            module.inv_freq.copy_(module.original_inv_freq)
            module.max_seq_len_cached = module.original_max_seq_len
    logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.float()


def loss_sum(model: Any, row: Row) -> torch.Tensor:
    """Cross entropy summed over the row's trained tokens."""
    logits = logits_of(model, row.ids)
    labels = torch.tensor([token if trained else -100 for token, trained in zip(row.ids, row.trained, strict=True)])
    return functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")


def mean_loss(model: Any, rows: Sequence[Row]) -> float:
    """The loss of all rows without training."""
    model.eval()
    with torch.no_grad():
        return sum(float(loss_sum(model, row)) for row in rows) / sum(row.targets for row in rows)


def train(model: Any, rows: Sequence[Row], steps: int) -> list[float]:
    """Losses of steps over all rows; the model keeps the trained weights."""
    count = sum(row.targets for row in rows)
    return _steps(model, [lambda row=row: loss_sum(model, row) / count for row in rows], steps)  # type: ignore[misc]


def train_pairs(model: Any, pairs: Sequence[tuple[Row, Row]], steps: int) -> list[float]:
    """DPO losses of steps over all pairs, against the model that it starts with."""
    model.eval()
    with torch.no_grad():
        reference = [(-loss_sum(model, chosen), -loss_sum(model, rejected)) for chosen, rejected in pairs]

    def of_pair(at: int) -> torch.Tensor:
        chosen, rejected = pairs[at]
        margin = -loss_sum(model, chosen) - reference[at][0] + loss_sum(model, rejected) + reference[at][1]
        return -functional.logsigmoid(BETA * margin) / len(pairs)

    return _steps(model, [lambda at=at: of_pair(at) for at in range(len(pairs))], steps)  # type: ignore[misc]


def _steps(model: Any, parts: Sequence[Callable[[], torch.Tensor]], steps: int) -> list[float]:
    """`parts` add up to the loss of a step; each has a backward pass of its own."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM)
    losses = []
    for _ in range(steps):
        total = 0.0
        for part in parts:
            loss = part()
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def continue_greedily(model: Any, ids: Sequence[int], count: int, end: int) -> list[int]:
    """Up to `count` tokens, each the likeliest after a full forward pass; stops before `end`."""
    model.eval()
    found: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = logits_of(model, [*ids, *found])
        token = int(logits[-1].argmax())
        if token == end:
            break
        found.append(token)
    return found


def difference(own: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """The largest deviation of a tensor as a share of how far training moved it; tensors that hardly moved are measured
    by a thousandth of the largest movement."""
    moved = {name: float((plain[name] - start[name]).norm()) for name in plain}
    least = 1e-3 * max(moved.values())
    return max(float((own[name] - plain[name]).norm()) / max(moved[name], least) for name in plain)


def relative(own: Sequence[float], plain: Sequence[float]) -> float:
    """The largest relative difference of two lists of losses."""
    assert len(own) == len(plain), (own, plain)
    return max(abs(left - right) / abs(right) for left, right in zip(own, plain, strict=True))
