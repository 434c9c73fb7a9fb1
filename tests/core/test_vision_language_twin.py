"""Training the language model of vision-language checkpoints, compared with their own forward pass, row by row."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bumblecore_core.run.model import build_model
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_core.toolkit.vision_language import tower_parameters
from bumblecore_core.values import Batch
from tiny_models import make_batch, register_attentions
from vision_language_models import CONFIGS, ONE_DOCUMENT_AT_A_TIME, save_vision_language_model

WINDOWS = (((13, 4, 20), (9,), (1, 17)), ((2,), (11, 3)))
"""Lengths of the documents in each micro-batch of two accumulation windows."""
OWN_LOGITS = {"aya_vision"}
"""Types that do not scale logits as their text config states: what they compute themselves is trained."""


def _micro_batches() -> list[Batch]:
    lengths = [of_batch for window in WINDOWS for of_batch in window]
    return [make_batch(of_batch, seed=number) for number, of_batch in enumerate(lengths)]


def _policy_loss(policy, batch: Batch) -> torch.Tensor:
    """Sum of the next-token losses inside documents."""
    places = torch.arange(batch.input_ids.shape[1])
    kept = places[~torch.isin(places, batch.cu_seqlens[1:] - 1)]
    if not len(kept):
        return torch.zeros(())
    hidden, head = policy.project(batch=batch, positions=kept)
    return functional.cross_entropy(head.logits(hidden).float(), batch.input_ids[0][kept + 1], reduction="sum")


def _rows(batch: Batch) -> list[torch.Tensor]:
    return list(batch.input_ids[0].split(batch.document_lengths))


def _own_loss(model, row: torch.Tensor) -> torch.Tensor:
    """transformers' forward pass of one row, without positions, masks or lengths."""
    # transformers' own forward pass of Llama 4 with images fails on text; its language model is a model of its own
    model = model.language_model if model.config.model_type == "llama4" else model
    logits = model(input_ids=row[None]).logits[0].float()
    return functional.cross_entropy(logits[:-1], row[1:], reduction="sum")


@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_loss_and_gradients_are_those_of_the_model_itself(model_type, attention, tmp_path):
    register_attentions()
    directory = save_vision_language_model(model_type, tmp_path)
    batches = _micro_batches()
    count = sum(length - 1 for batch in batches for length in batch.document_lengths)

    apart = model_type in ONE_DOCUMENT_AT_A_TIME
    model = build_model(directory=directory, from_config=False, attention=attention, seed=0).train()
    policy = make_policy(model, one_document=apart)
    losses = [_policy_loss(policy, batch) / count for batch in batches]
    for loss in losses:
        if loss.requires_grad:
            loss.backward()

    twin = build_model(directory=directory, from_config=False, attention="eager", seed=0).eval()
    own = [_own_loss(twin, row) / count for batch in batches for row in _rows(batch) if len(row) > 1]
    for loss in own:
        loss.backward()

    read_as_data = ("head", "on supervised positions only, read as data from the model") in policy.features
    assert read_as_data == (model_type not in OWN_LOGITS)
    torch.testing.assert_close(sum(losses), sum(own), rtol=1e-5, atol=1e-6)
    frozen = tower_parameters(model)
    assert frozen
    assert not any(parameter.requires_grad for parameter in frozen.values())
    gradients = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
            assert gradients[name].grad is None, name
        else:
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=2e-4, atol=2e-6, msg=name)
