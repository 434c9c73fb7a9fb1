"""Proofs that a model is causal, keeps documents apart, and computes shared prefixes as if they were repeated.

Each is a comparison of hidden states of forward passes over short documents, in words where they differ. Passes of the
same shape differ by a few roundings at most (batches of experts depend on which tokens they get); passes of different
shapes by those of other matrix kernels. A token that sees what it must not changes its state by far more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bumblecore_core.errors import BumbleError, PluginError
from bumblecore_core.toolkit.library_errors import library_message
from bumblecore_core.toolkit.packing import pack, unshared
from bumblecore_core.toolkit.probes import close
from bumblecore_core.values import Batch

States = Callable[[Batch], torch.Tensor]
"""Hidden states (T, H), or logits (T, V), of a batch of T tokens."""

LONGEST = 37
"""Tokens of the longest document: more than the limits `miniature.WITHIN` and `THRESHOLD`, fewer than `BETWEEN`."""
CUTS = (2, 7, 8, 15, 16, 23, 31)
"""Last tokens that stay as they are, among them those at the edges of windows and chunks."""
FIRST_ID = 8
"""Smaller token ids are often special."""
SAME_SHAPE = 4.0
OTHER_SHAPE = 12.0
"""Roundings that `probes.close` allows, 4e-6 and 1.2e-5 of the largest state in float32: 107 model types differ by 2e-7
and 1e-6 at most where they are exact, and by 0.2 or more where they are not."""
LAYOUTS: Sequence[tuple[int, ...]] = ((13, 21), (21, 37, 13), (9, 1, 21, 16), (37, 13, 9, 21, 1))
"""Lengths of documents in a batch: each stands first, later, and last; after shorter and longer ones."""
PREFIXES = ((5, 4), (12, 12), (20, 3))
"""Tokens of a trunk that two documents after it share."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong with a model, in words; None where the proof holds or was not asked for."""

    causality: str | None = None
    """A token's state depends on what comes after it, or on earlier forward passes."""
    isolation: str | None = None
    """A document's states depend on the other documents of its batch."""
    sharing: str | None = None
    """A shared prefix that is computed once changes the states."""
    truncation: str | None = None
    """A prefix has other states in a longer document, so that documents cannot share it."""


def prove(
    states: States,
    *,
    vocabulary: int,
    device: torch.device,
    isolation: bool = True,
    shared_states: States | None = None,
) -> Verdict:
    """The verdict on a model in evaluation mode whose hidden states `states` computes; the first fault ends the proof.

    `isolation`: whether batches of several documents are examined too. `shared_states`: the same as `states`, but a
    shared prefix is computed once. Raises what the model raises for a single document; what it raises for several is
    why it cannot keep them apart.
    """
    documents = Documents(vocabulary, device)
    causality = against_fresh_passes(states, documents) or against_causality(states, documents)
    if causality is not None or not isolation:
        return Verdict(causality=causality)
    try:
        apart = against_isolation(states, documents)
    except Exception as error:
        return Verdict(isolation=failure(error))
    if apart is not None or shared_states is None:
        return Verdict(isolation=apart)
    try:
        return Verdict(sharing=against_sharing(shared_states, states, documents))
    except Exception as error:
        return Verdict(sharing=failure(error))


def failure(error: Exception) -> str:
    """Why a forward pass failed, in one sentence. Raises again where a plugin broke its contract."""
    if isinstance(error, PluginError) and error.__cause__ is None:
        raise error
    if isinstance(error, BumbleError):
        return error.problems[0].problem
    return f"the model fails with it: {library_message(error).split('. ')[0]}"


@dataclass(frozen=True)
class Documents:
    """Documents of fixed tokens: no random numbers are drawn."""

    vocabulary: int
    device: torch.device

    def tokens(self, length: int, *, variant: int = 0) -> np.ndarray:
        """(n,) int64: the document of this length; another `variant` differs in every token."""
        ids = np.arange(length) * 7 + length * 11 + variant * 5
        return FIRST_ID + ids % (self.vocabulary - FIRST_ID)

    def batch(self, documents: Sequence[np.ndarray], shared: Sequence[int] = ()) -> Batch:
        """The documents one after the other."""
        return pack(documents, rows=range(len(documents)), count=0, shared_prefixes=shared).to(self.device)


def against_fresh_passes(states: States, documents: Documents) -> str | None:
    """Whether a document's states change once the model has computed a longer one, which it must not have before."""
    short, long = (documents.batch([documents.tokens(length)]) for length in (21, LONGEST))
    before = states(short)
    if not bool(torch.isfinite(before).all()):
        return "its hidden states are not finite"
    states(long)
    if not close(states(short), before, ulps=SAME_SHAPE):
        return "a document's hidden states change once the model has computed a longer document"
    return None


def against_causality(states: States, documents: Documents) -> str | None:
    """Whether a state changes with later tokens."""
    document, other = documents.tokens(LONGEST), documents.tokens(LONGEST, variant=1)
    whole = states(documents.batch([document]))
    for cut in CUTS:
        changed = np.concatenate([document[: cut + 1], other[cut + 1 :]])
        after = states(documents.batch([changed]))
        if not close(after[: cut + 1], whole[: cut + 1], ulps=SAME_SHAPE):
            return "a token's hidden state changes with the tokens after it"
    return None


def against_truncation(states: States, documents: Documents) -> str | None:
    """Whether a prefix has other states in the document than without the rest of it."""
    document = documents.tokens(LONGEST)
    whole = states(documents.batch([document]))
    for length in (5, 16, 21, LONGEST - 1):
        if not close(states(documents.batch([document[:length]])), whole[:length], ulps=OTHER_SHAPE):
            return "the hidden states of a document's first tokens change with its length"
    return None


def against_isolation(states: States, documents: Documents) -> str | None:
    """Whether a document's states change with the tokens, the lengths, or the presence of documents around it."""
    alone: dict[int, torch.Tensor] = {}
    for layout in LAYOUTS:
        outputs = []
        for variant in (0, 1):  # every second document changes
            parts = [documents.tokens(n, variant=variant * (place % 2 == 0)) for place, n in enumerate(layout)]
            outputs.append(torch.split(states(documents.batch(parts)), list(layout)))
        for place, length in enumerate(layout):
            if length not in alone:
                alone[length] = states(documents.batch([documents.tokens(length)]))
            if place % 2 and not close(outputs[0][place], outputs[1][place], ulps=SAME_SHAPE):
                return "a document's hidden states change with the tokens of the documents around it"
            if not close(outputs[0][place], alone[length], ulps=OTHER_SHAPE):
                return "a document's hidden states differ from those that it has alone"
    return None


def against_sharing(shared_states: States, states: States, documents: Documents) -> str | None:
    """Whether computing a shared prefix once, as `shared_states` does, gives other states than repeating it."""
    for first, second in PREFIXES:
        parts = [documents.tokens(LONGEST - 16), documents.tokens(9), documents.tokens(5), documents.tokens(13)]
        shared = documents.batch(parts, (0, first, second, 0))
        repeated, places = unshared(shared)
        if not close(shared_states(shared), states(repeated).index_select(0, places), ulps=OTHER_SHAPE):
            return "with this attention, a prefix that is computed once gives other hidden states"
    return None
