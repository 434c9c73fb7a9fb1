"""What a run adds to its model's vocabulary: tokens, and rows of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bumblecore_core.config.schema import ModelSection
from bumblecore_core.errors import ModelError, one
from bumblecore_core.run.stage_factory import StageFactory
from bumblecore_core.toolkit.adapters import adapter_chain
from bumblecore_core.toolkit.new_tokens import adapter_rows, vocabulary_size


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """`rows`: rows of the embeddings to train with; None where the config does not state them. `new_ids`: tokens that
    the model does not know yet, which an adapter trains. `features`: lines for the summary."""

    rows: int | None
    new_ids: tuple[int, ...] = ()
    features: tuple[tuple[str, str], ...] = ()


def extended_vocabulary(
    section: ModelSection, config: Any, tokenizer: Any, factory: StageFactory, directory: Path
) -> Vocabulary:
    """The vocabulary of a run with `tokenizer`, whose added tokens are in it. `config`, that of the model in
    `directory`, then states the rows.

    Raises `ModelError` BC027 where the tokenizer can produce an id that has no row in the embedding and
    `model.resize_embeddings` is off. More rows than ids are common (padded to a multiple) and harmless.
    """
    stated = vocabulary_size(config)
    if stated is None:
        return Vocabulary(rows=None, new_ids=_added(section, tokenizer, factory))
    rows = before = max([stated, *(adapter_rows(adapter) for adapter in adapter_chain(directory)[1])])
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows and not section.resize_embeddings:
        raise one(
            ModelError,
            "BC027",
            f"the tokenizer has ids up to {largest} ({len(tokenizer)} tokens), the model's embedding has {rows} rows",
            "Use this model's tokenizer, or set model.resize_embeddings to true to give the model rows for all ids",
            place=str(directory / "config.json"),
            field="model.tokenizer",
        )
    added = _added(section, tokenizer, factory)
    features = [f"{len(added)} tokens added"] if added else []
    if largest >= rows:
        multiple = section.resize_multiple_of
        rows = -(-(largest + 1) // multiple) * multiple
        features.append(f"embeddings resized from {before:,} to {rows:,} rows; new rows are the mean of the old ones")
        added = tuple(sorted({*added, *(token for token in tokenizer.get_vocab().values() if token >= before)}))
    config.get_text_config().vocab_size = rows
    return Vocabulary(rows=rows, new_ids=added, features=(("vocabulary", "; ".join(features)),) if features else ())


def _added(section: ModelSection, tokenizer: Any, factory: StageFactory) -> tuple[int, ...]:
    """Ids of `model.add_tokens` that the tokenizer on disk does not have."""
    if not section.add_tokens:
        return ()
    known = replace(factory, add_tokens=()).tokenizer().get_vocab()
    return tuple(sorted({tokenizer.convert_tokens_to_ids(text) for text in section.add_tokens if text not in known}))
