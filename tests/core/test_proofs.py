"""The proofs themselves, on functions in place of models: each kind of fault gets the verdict that names it."""

from __future__ import annotations

import pytest
import torch

from bumblecore_core.toolkit.packing import unshared
from bumblecore_core.toolkit.proofs import Verdict, prove
from bumblecore_core.values import Batch

CPU = torch.device("cpu")


def exact(batch: Batch) -> torch.Tensor:
    """(T, 2): of each token the running mean of its document's ids, and their running maximum."""
    expanded, places = unshared(batch) if batch.shared_prefixes else (batch, torch.arange(batch.tokens))
    states = []
    for ids in expanded.input_ids[0].float().split(expanded.document_lengths):
        counts = torch.arange(1, len(ids) + 1)
        states.append(torch.stack([ids.cumsum(0) / counts, ids.cummax(0).values], dim=1))
    return torch.cat(states)[places]


def verdict(states, *, shared=None, **options) -> Verdict:
    return prove(states, vocabulary=200, device=CPU, shared_states=shared, **options)


def test_an_exact_function_has_no_fault():
    assert verdict(exact, shared=exact) == Verdict()


def test_a_document_without_neighbours_is_not_compared_with_any():
    def one_sequence(batch):
        whole = batch.input_ids[0].float().cumsum(0)
        return whole[:, None]

    assert verdict(one_sequence, isolation=False) == Verdict()
    assert "the documents around it" in (verdict(one_sequence).isolation or "")


def next_token(batch: Batch) -> torch.Tensor:
    """`exact`, but the tokens from 20 on see the next one."""
    states = exact(batch)
    later = torch.roll(batch.input_ids[0].float(), -1) * (batch.position_ids[0] >= 20)
    return states + 0.01 * later[:, None]


def whole_length(batch: Batch) -> torch.Tensor:
    """`exact`, but all states change with the length of the longest document."""
    return exact(batch) * (1.0 + 0.01 * (batch.max_seqlen > 32))


def number_of_documents(batch: Batch) -> torch.Tensor:
    """`exact`, but the states of the fourth document and later ones are larger."""
    states = exact(batch)
    states[sum(batch.document_lengths[:3]) :] *= 1.01
    return states


def not_finite(batch: Batch) -> torch.Tensor:
    return exact(batch).log_().neg_().sqrt_()


@pytest.mark.parametrize(
    ("states", "causality", "isolation"),
    [
        (next_token, "changes with the tokens after it", None),
        (not_finite, "not finite", None),
        (whole_length, None, "differ from those that it has alone"),
        (number_of_documents, None, "differ from those that it has alone"),
    ],
)
def test_each_fault_is_named(states, causality, isolation):
    found = verdict(states)
    for reason, part in ((found.causality, causality), (found.isolation, isolation)):
        assert reason is None if part is None else part in reason


def test_what_a_longer_document_leaves_behind_is_found():
    longest = 0

    def remembering(batch):
        nonlocal longest
        longest = max(longest, batch.max_seqlen)
        return exact(batch) * longest

    assert "once the model has computed a longer document" in (verdict(remembering).causality or "")


def test_a_prefix_that_is_shared_wrongly_is_found_for_each_document_that_shares_it():
    def wrong_second(batch):
        return exact(batch) + (batch.position_ids[0] > 24)[:, None] * (len(batch.shared_prefixes) > 0)

    found = verdict(exact, shared=wrong_second)
    assert (found.causality, found.isolation) == (None, None)
    assert "computed once" in (found.sharing or "")


def test_what_several_documents_raise_is_why_they_are_not_kept_apart():
    def single(batch):
        if len(batch.document_lengths) > 1:
            raise ValueError("no packed documents. Install another kernel")
        return exact(batch)

    assert verdict(single).isolation == "the model fails with it: no packed documents"

    def failing(batch):
        raise ValueError("no documents at all")

    with pytest.raises(ValueError, match="at all"):
        verdict(failing)
