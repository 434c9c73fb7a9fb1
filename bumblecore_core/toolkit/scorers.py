"""Reward models: the backbone of a causal language model with `score`, one number a position, in place of its head.

transformers has them as `…ForSequenceClassification`. They score a sequence at its last token that is not the config's
`pad_token_id`; so this id must be the one that fills up batches, and no sequence may end with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bumblecore_core.errors import ModelError, one

SCORE = "score"
SCORE_WEIGHT = f"{SCORE}.weight"
CLASS = "ForSequenceClassification"
ADAPTER_TASK = "SEQ_CLS"


def is_scorer(base: Path, adapters: Sequence[Path]) -> bool:
    """Whether the model directory `base`, or an adapter on it, is a reward model's (see `adapters.adapter_chain`)."""
    if any(_read(adapter / "adapter_config.json").get("task_type") == ADAPTER_TASK for adapter in adapters):
        return True
    return names_scorer(_read(base / "config.json").get("architectures"))


def names_scorer(architectures: Any) -> bool:
    """Whether a config's `architectures` are those of a reward model."""
    return isinstance(architectures, list) and any(str(name).endswith(CLASS) for name in architectures)


def refuse_scorer(base: Path, adapters: Sequence[Path], *, fix: str, field: str) -> None:
    """Raises `ModelError` BC064, saying `fix`, for a reward model where a language model is needed."""
    if is_scorer(base, adapters):
        problem = "this is a reward model: it gives scores, and has no language model's head"
        raise one(ModelError, "BC064", problem, fix, place=str(adapters[-1] if adapters else base), field=field)


def make_scorer_config(config: Any, pad_token_id: int | None) -> None:
    """Has a transformers config describe a reward model whose batches are filled up with `pad_token_id`; None leaves
    what it says of that."""
    config.num_labels = 1
    if pad_token_id is not None:
        config.get_text_config().pad_token_id = pad_token_id


def score_of(model: Any) -> Any:
    """The module that scores hidden states of a transformers model, (N, H) to (N, 1); None for a language model."""
    return getattr(model, SCORE, None) if type(model).__name__.endswith(CLASS) else None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # whoever loads the model says it better
    return found if isinstance(found, dict) else {}
