"""Tokens that a tokenizer lacks, and embeddings with more rows: added before training, found again in an adapter.

New rows are the mean of the old ones, of the input embedding and of the output head separately. No random numbers: an
adapter's base is resized again, to the same values, whenever the adapter is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import ConfigError, ModelError, one
from bumblecore_core.toolkit.adapter_tensors import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from bumblecore_core.toolkit.json_files import read_json_object
from bumblecore_core.toolkit.library_errors import library_message

if TYPE_CHECKING:
    import torch

ADD_TOKENS = "model.add_tokens"
EMBEDDINGS = re.compile(r"(embed_tokens|embed_in|wte|word_embeddings|embeddings|lm_head|embed_out)\.weight$")
"""Names under which adapter files hold complete embeddings or heads, as PEFT saves them of a resized model."""


def add_tokens(tokenizer: Any, texts: Sequence[str]) -> None:
    """Adds `texts` to the tokenizer, each as one token that is found in any text. They are not special: a reply that is
    decoded shows them. Tokens that it knows stay as they are.

    Raises `ConfigError` BC102 for a text that is empty or not printable.
    """
    from tokenizers import AddedToken

    for text in texts:
        if not text.strip() or not text.isprintable():
            problem = f"{text!r} cannot be a token: it is empty, or has characters that cannot be printed"
            raise one(ConfigError, "BC102", problem, "Remove it, or write another text", field=ADD_TOKENS)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts if text not in known])


def resize_embeddings(model: Any, rows: int | None) -> None:
    """Gives the input embedding of `model`, and its output head where it has one, `rows` rows, as `vocab_size` of its
    config then states. Nothing where they have as many or more, or for None. Tied weights stay tied; a head's new
    biases are the mean of the old ones.

    Raises `ModelError` BC101 where the model cannot be resized.
    """
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    if rows is None or rows <= before:
        return
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    try:
        with torch.random.fork_rng(devices=[]):  # transformers draws the new rows, which are replaced below
            model.resize_token_embeddings(rows, mean_resizing=False)
    except Exception as error:
        raise _not_resized(model, rows, library_message(error)) from error
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    if any(end.weight.shape[0] != rows for end in ends):
        raise _not_resized(model, rows, f"its rows are {[end.weight.shape[0] for end in ends]} then")
    if tied and ends[0].weight is not ends[1].weight:
        raise _not_resized(model, rows, "its tied weights come apart")
    seen: set[int] = set()
    for end in ends:
        for values in (end.weight, getattr(end, "bias", None)):
            if values is not None and id(values) not in seen:
                seen.add(id(values))
                _fill_with_mean(values, before)


def resize_for_adapter(model: Any, directory: Path) -> None:
    """Gives `model` the rows that the adapter in `directory` was trained with, where these are more."""
    resize_embeddings(model, adapter_rows(directory))


def adapter_rows(directory: Path) -> int:
    """Rows of the embeddings that the adapter in `directory` needs: by a config.json next to it, by the embeddings in
    its file, and by the tokens that it trains; 0 where none says so."""
    from safetensors import SafetensorError, safe_open

    found = [0]
    if (directory / "config.json").is_file():
        found.append(stated_rows(directory / "config.json"))
    indices = read_json_object(directory / ADAPTER_CONFIG, "model.path").get("trainable_token_indices") or []
    for ids in indices.values() if isinstance(indices, dict) else [indices]:
        found += [token + 1 for token in ids if isinstance(token, int)] if isinstance(ids, list) else []
    if (directory / ADAPTER_WEIGHTS).is_file():
        try:
            with safe_open(directory / ADAPTER_WEIGHTS, framework="pt") as file:
                # the object has no iterator
                for name in file.keys():  # noqa: SIM118
                    if EMBEDDINGS.search(name):
                        found.append(file.get_slice(name).get_shape()[0])
        except (SafetensorError, OSError):
            return max(found)  # reported where the weights are read
    return max(found)


def vocabulary_size(config: Any) -> int | None:
    """Rows of the embeddings by a transformers config; None where it does not state them."""
    text = config.get_text_config()
    return text.vocab_size if hasattr(text, "vocab_size") else None


def stated_rows(file: Path) -> int:
    """`vocab_size` of a config.json, or of the language model's part of one; 0 where it states none."""
    config = read_json_object(file, "model.path")
    text = config.get("text_config")
    rows = (text if isinstance(text, dict) else config).get("vocab_size")
    return rows if isinstance(rows, int) else 0


def _fill_with_mean(values: torch.Tensor, before: int) -> None:
    """Sets the rows from `before` on to the mean of those before, computed in float32 and rounded once."""
    import torch

    with torch.no_grad():
        values[before:] = values[:before].float().mean(dim=0).to(values.dtype)


def _not_resized(model: Any, rows: int, why: str) -> Exception:
    problem = f"the embeddings of {type(model).__name__} cannot be resized to {rows} rows: {why}"
    fix = "Use this model with its own tokenizer, without new tokens"
    return one(ModelError, "BC101", problem, fix, field="model.resize_embeddings")
