"""Forward passes over the documents of a micro-batch: all documents in one, or one document after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch

from bumblecore_core.toolkit.rope_state import find_dynamic_ropes, reset_rope
from bumblecore_core.toolkit.shards import is_sharded, largest_over_ranks
from bumblecore_core.toolkit.vision_language import text_positions, without_adapter
from bumblecore_core.values import Batch

Compute: TypeAlias = Callable[[dict[str, Any], range], torch.Tensor]
"""(keyword arguments of the model, which tokens of the batch they are) to (N, ·), what the pass computes of them."""

_in_dummy_pass: ContextVar[bool] = ContextVar("in_dummy_pass", default=False)


class ForwardPasses:
    """How a model computes a micro-batch. `one_document`: each document in a pass of its own, as if it were alone.

    Each pass begins with the rotary frequencies that the model was loaded with. Where ranks hold shards of the weights,
    each pass gathers them from all ranks: a rank with fewer documents than another one adds dummy passes.
    """

    own_positions = False
    """Whether the model counts positions itself: passed ones would be others than those that it is used with."""

    def __init__(self, model: torch.nn.Module, *, one_document: bool = False) -> None:
        self.one_document = one_document
        self._is_sharded = is_sharded(model)
        self._config = without_adapter(model).config
        self._ropes = find_dynamic_ropes(model)

    def run(self, batch: Batch, compute: Compute) -> torch.Tensor:
        """What `compute` gives for each pass, concatenated in the order of the documents; the rows of dummy passes come
        last. `batch` has no shared prefixes, unless the documents are computed together. With `one_document` and
        sharded weights a collective."""
        if not self.one_document:
            return self._computed(compute, _together(batch), range(batch.tokens))
        missing = self._missing_passes(batch)  # first: ranks match their collectives in order
        outputs, start = [], 0
        for length in batch.document_lengths:
            place = range(start, start + length)
            outputs.append(self._computed(compute, _alone(batch, place), place))
            start += length
        for _ in range(missing):
            with _dummy_pass():
                outputs.append(self._computed(compute, _alone(batch, range(1)), range(0)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _computed(self, compute: Compute, inputs: dict[str, Any], place: range) -> torch.Tensor:
        for rope in self._ropes:
            reset_rope(rope)
        positions = text_positions(self._config, inputs.pop("position_ids"))
        return compute(inputs if self.own_positions else {**inputs, "position_ids": positions}, place)

    def _missing_passes(self, batch: Batch) -> int:
        """How many more documents another rank computes at this moment."""
        if not self._is_sharded:
            return 0
        documents = len(batch.document_lengths)
        return largest_over_ranks(documents, batch.input_ids.device) - documents


def in_dummy_pass() -> bool:
    """Whether the current forward pass only serves the collectives of other ranks: nothing of it may be counted."""
    return _in_dummy_pass.get()


@contextmanager
def _dummy_pass() -> Iterator[None]:
    token = _in_dummy_pass.set(True)
    try:
        yield
    finally:
        _in_dummy_pass.reset(token)


def _together(batch: Batch) -> dict[str, Any]:
    """transformers passes the keys after `use_cache` through to the attention function.

    A single document gets no `cu_seq_lens`: some models compute packed documents by other kernels.
    """
    bounds = {
        "cu_seq_lens_q": batch.cu_seqlens,
        "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": batch.max_seqlen,
        "max_length_k": batch.max_seqlen,
    }
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
        **(bounds if len(batch.document_lengths) > 1 else {}),
        "document_lengths": batch.document_lengths,
        **({"shared_prefixes": batch.shared_prefixes} if batch.shared_prefixes else {}),
    }


def _alone(batch: Batch, place: range) -> dict[str, Any]:
    return {
        "input_ids": batch.input_ids[:, place.start : place.stop],
        "position_ids": batch.position_ids[:, place.start : place.stop],
        "use_cache": False,
    }
