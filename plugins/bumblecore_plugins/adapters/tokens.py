"""Single rows of the embeddings that an adapter trains: PEFT's `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bumblecore_core import ConfigError, one


def token_rows(model: Any, tokens: Sequence[int]) -> dict[str, list[int]]:
    """The option `trainable_token_indices` that trains the rows `tokens` of the input embedding and of the output head;
    empty for no tokens. Of tied weights the embedding is named alone, and PEFT has the head follow."""
    if not tokens:
        return {}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = [embedding]
    if head is not None and head.weight is not embedding.weight:
        ends.append(head)
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(end)]: sorted(tokens) for end in ends}


def check_token_rows(model: Any) -> None:
    """Raises `ConfigError` BC103 for trained rows of a head that has a bias, which PEFT's forward pass would drop."""
    from peft.utils.other import TrainableTokensWrapper

    for name, module in model.named_modules():
        if isinstance(module, TrainableTokensWrapper) and getattr(module.original_module, "bias", None) is not None:
            problem = f"PEFT trains single rows of an output layer without its bias, and {name} has one"
            fix = "Train the whole layer (adapter.modules_to_save), or no single tokens"
            raise one(ConfigError, "BC103", problem, fix, field="adapter")
