"""What a policy finds out about its model by tiny forward passes, before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bumblecore_core.errors import BumbleError, ModelError, one
from bumblecore_core.toolkit.head import read_head
from bumblecore_core.toolkit.library_errors import library_message
from bumblecore_core.toolkit.packing import unshared
from bumblecore_core.toolkit.probes import PROBE_LENGTHS, close, probe_batch
from bumblecore_core.values import Batch

if TYPE_CHECKING:
    from bumblecore_core.toolkit.policy import Policy

SAME_SHAPE = 4.0
"""Roundings by which passes of the same shape may differ, in any dtype."""


def against_positions(policy: Policy) -> str | None:
    """Why the model must count positions itself, or None where it counts them from 0 as a batch does.

    RoBERTa and its kind begin behind the id of the padding token, but take passed positions as they are.
    """
    probe = probe_batch(policy.inner, PROBE_LENGTHS[:1])
    passed = _outputs(policy, probe)
    policy.passes.own_positions = True
    try:
        counted = _outputs(policy, probe)
    except Exception:  # of any kind: code of model classes that need positions
        return None
    finally:
        policy.passes.own_positions = False
    return None if close(passed, counted, ulps=SAME_SHAPE) else "the model counts positions in a way of its own"


def against_isolation(policy: Policy) -> str | None:
    """Why documents cannot be computed in one forward pass, or None where a document's outputs are those that it has
    alone, whatever precedes it.

    Next to two different neighbours every shape is the same, so that the comparison can be sharp in any dtype.
    """
    first, second = PROBE_LENGTHS
    try:
        outputs = [_outputs(policy, probe_batch(policy.inner, PROBE_LENGTHS, shift=shift))[first:] for shift in (0, 1)]
    except BumbleError:
        raise
    except Exception as error:  # of any kind: code of model classes that take no concatenated documents
        return f"the model fails on several documents: {library_message(error).split('. ')[0]}"
    alone = _outputs(policy, probe_batch(policy.inner, (second,), skip=first))
    if not close(outputs[0], outputs[1], ulps=SAME_SHAPE):
        return "a document's hidden states change with the document before it"
    if not close(outputs[0], alone):
        return "a document's hidden states differ from those that it has alone"
    return None


def require_causality(policy: Policy) -> None:
    """Raises `ModelError` BC065 where the outputs of a document's first tokens change with its later tokens."""
    kept, length = PROBE_LENGTHS[0], sum(PROBE_LENGTHS)
    document, changed = (probe_batch(policy.inner, (length,)) for _ in range(2))
    changed.input_ids[:, kept:] = document.input_ids[:, : length - kept]
    before, after = (_outputs(policy, batch)[:kept] for batch in (document, changed))
    if close(before, after, ulps=SAME_SHAPE):
        return
    config = policy.inner.config
    problem = (
        "a token's hidden state changes with the tokens after it "
        f"(model type {getattr(config, 'model_type', '?')}, attention {getattr(config, '_attn_implementation', '?')})"
    )
    fix = "Choose a causal language model, or another model.attention"
    raise one(ModelError, "BC065", problem, fix, field="model.path, model.attention")


def head_mismatch(policy: Policy) -> str | None:
    """Why the head as data does not give the model's own logits, or None where it does."""
    head = read_head(policy.inner)
    if isinstance(head, str):
        return head
    probe = probe_batch(policy.inner, PROBE_LENGTHS[:1])
    hidden, own = policy.hidden(probe), policy.logits(probe)
    same = head.weight is not None and hidden.shape[-1] == head.weight.shape[-1]
    if not same or not close(head.logits(hidden), own):
        return "its logits differ from what its configuration says of them"
    return None


def require_score_of_last_token(policy: Policy) -> None:
    """Raises `ModelError` BC064 unless a reward model's own score of a sequence is that of its last token which is no
    padding."""
    probe = probe_batch(policy.inner, PROBE_LENGTHS[:1])
    own = policy.logits(probe)
    pad = policy.inner.config.get_text_config().pad_token_id
    last = (probe.input_ids[0] != (-1 if pad is None else pad)).nonzero()[-1]
    if policy.backbone is not None and close(policy.scores(batch=probe, positions=last), own):
        return
    problem = f"{type(policy.inner).__name__} does not score a sequence by its module 'score' at the last token"
    raise one(ModelError, "BC064", problem, "Use a decoder model such as llama or qwen3", field="model.path")


def against_sharing(policy: Policy) -> str | None:
    """Why a prefix cannot be computed once for two documents, or None where it can."""
    if policy.one_document:
        return "each document is computed in a forward pass of its own"
    if next(policy.model.parameters()).is_cuda:
        return "on a GPU all documents go through one kernel, which takes none"
    if _is_random(policy):
        return "dropout would be the same for both documents"
    lengths = (*PROBE_LENGTHS, PROBE_LENGTHS[1])
    shared = probe_batch(policy.inner, lengths, shared=(0, PROBE_LENGTHS[0] - 2, PROBE_LENGTHS[0] - 3))
    expanded, places = unshared(shared)
    alone = _outputs(policy, expanded).index_select(0, places)
    policy.shares_prefixes = True
    try:
        together = _outputs(policy, shared)
    finally:
        policy.shares_prefixes = False
    return None if close(together, alone) else "this attention keeps documents apart"


def _is_random(policy: Policy) -> bool:
    """Whether a forward pass in training mode draws random numbers, as any kind of dropout does.

    Outputs alone would not show it: a small probability rarely hits a small probe, and the dropout of a new LoRA
    adapter changes nothing while its output is zero.
    """
    probe = probe_batch(policy.inner, PROBE_LENGTHS)
    policy.model.train()
    try:
        state = torch.random.get_rng_state()
        first, second = _outputs(policy, probe), _outputs(policy, probe)
        return not torch.equal(state, torch.random.get_rng_state()) or not close(first, second, ulps=SAME_SHAPE)
    finally:
        policy.model.eval()


def _outputs(policy: Policy, batch: Batch) -> torch.Tensor:
    """(T, ·): hidden states, or logits of a model without a backbone of its own."""
    return policy.logits(batch) if policy.backbone is None else policy.hidden(batch)
