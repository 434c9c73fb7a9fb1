"""The model as stages and losses see it: hidden states at kept positions, and the head as data.

A causal language model is a backbone and a head. Losses need the head's logits at supervised positions only, and a
fused loss needs the head's weight rather than its output. So the head is read from the model as (weight, bias, scale,
soft cap), and *verified*: a small probe compares it with the model's own logits, and compares a document's hidden
states next to two different neighbours. A head that cannot be described falls back to the model's own logits, a model
that does not keep documents apart computes one document per forward pass; both are reported.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from bumblecore_core.toolkit.head import Head as Head
from bumblecore_core.toolkit.head import backbone_of, read_head
from bumblecore_core.toolkit.head import head_parameters as head_parameters
from bumblecore_core.toolkit.packing import unshared
from bumblecore_core.toolkit.passes import ForwardPasses
from bumblecore_core.toolkit.policy_checks import (
    against_isolation,
    against_positions,
    against_sharing,
    head_mismatch,
    require_causality,
    require_score_of_last_token,
)
from bumblecore_core.toolkit.probes import undisturbed
from bumblecore_core.toolkit.scorers import score_of
from bumblecore_core.toolkit.vision_language import language_model, without_adapter
from bumblecore_core.values import Batch


class Policy:
    """A causal language model that yields (hidden, head) at chosen positions of a padding-free batch, or a reward model
    that yields scores there.

    It holds the inner model only by reference; the module that an engine wraps is elsewhere.
    """

    features: list[tuple[str, str]]
    """(feature, what was decided) lines for the start summary."""
    shares_prefixes: bool
    """Whether the model computes a shared prefix once (see `Batch`). Where it does not, the prefix is repeated here,
    which changes no number."""
    leak: str | None
    """Why documents are computed one per forward pass; None where this was not found here."""

    def __init__(self, model: torch.nn.Module, *, one_document: bool = False) -> None:
        unwrapped = without_adapter(model)
        self.inner: Any = language_model(unwrapped)
        self.model = model if self.inner is unwrapped else self.inner
        self.backbone = backbone_of(self.inner)
        self.features, self.shares_prefixes, self.leak = [], False, None
        self.passes = ForwardPasses(self.model, one_document=one_document)
        self.keeps_logits = "logits_to_keep" in inspect.signature(self.inner.forward).parameters
        self.own_logits = self.backbone is None or isinstance(read_head(self.inner), str)

    @property
    def one_document(self) -> bool:
        """Whether each document of a micro-batch is computed in a forward pass of its own."""
        return self.passes.one_document

    def project(self, *, batch: Batch, positions: torch.Tensor) -> tuple[torch.Tensor, Head]:
        """Hidden states (N, H) at `positions` (N,) int64 of the batch's T tokens, and the head that turns them into
        logits. Where the head is not describable, logits (N, V) and a head without weight."""
        if self.own_logits:
            return self._logits_at(batch, positions), Head(weight=None)
        head = read_head(self.inner)
        assert isinstance(head, Head), head
        return self.hidden(batch).index_select(0, positions), head

    def scores(self, *, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """(N,) float32: what a reward model says at `positions` (N,) int64."""
        found: torch.Tensor = score_of(self.inner)(self.hidden(batch).index_select(0, positions))
        return found[:, 0].float()

    def hidden(self, batch: Batch) -> torch.Tensor:
        """(T, H): the backbone's last hidden state of each token; more rows where dummy passes follow."""
        if batch.shared_prefixes and not self.shares_prefixes:
            expanded, places = unshared(batch)
            return self.hidden(expanded).index_select(0, places)
        backbone = self.backbone
        assert backbone is not None

        def last_hidden_state(inputs: dict[str, Any], place: range) -> torch.Tensor:
            hidden: torch.Tensor = backbone(**inputs).last_hidden_state[0]
            return hidden

        return self.passes.run(batch, last_hidden_state)

    def logits(self, batch: Batch) -> torch.Tensor:
        """(T, V): the model's own logits of each token of a batch without shared prefixes; of a reward model its own
        scores, one for each forward pass."""
        return self.passes.run(batch, lambda inputs, place: self.model(**inputs).logits[0])

    def _logits_at(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        if batch.shared_prefixes and not self.shares_prefixes:
            batch, places = unshared(batch)
            positions = places.index_select(0, positions)
        if not self.one_document:
            return self.passes.run(batch, lambda inputs, place: self._own_logits_at(inputs, positions))
        order: list[torch.Tensor] = []

        def logits_of_document(inputs: dict[str, Any], place: range) -> torch.Tensor:
            order.append(((positions >= place.start) & (positions < place.stop)).nonzero()[:, 0])
            return self._own_logits_at(inputs, positions.index_select(0, order[-1]) - place.start)

        logits = self.passes.run(batch, logits_of_document)
        return logits.index_select(0, torch.cat(order).argsort())

    def _own_logits_at(self, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
        """(N, V) of one forward pass, at `positions` (N,) of its tokens."""
        if self.keeps_logits:
            kept: torch.Tensor = self.model(**inputs, logits_to_keep=positions).logits[0]
            if kept.shape[0] == positions.shape[0]:
                return kept
            self.keeps_logits = False
        logits: torch.Tensor = self.model(**inputs).logits[0]
        return logits.index_select(0, positions)


def make_policy(model: torch.nn.Module, *, one_document: bool = False, share_prefixes: bool = False) -> Policy:
    """The verified policy of a transformers causal language model (PEFT-wrapped ones too), or of a reward model, on its
    final device.

    A few tiny forward passes decide. With `one_document`, or where hidden states depend on a neighbouring document, the
    documents of a micro-batch are computed one per forward pass. A model whose hidden states depend on later tokens of
    their document raises ModelError (BC065). A head that does not reproduce the model's own logits is replaced by these
    logits. A reward model whose own score of a sequence is not that of its last token raises ModelError (BC064). With
    `share_prefixes` a shared prefix is computed once where the model then gives what it gives for the repeated one.
    Random state and training mode stay as they were.
    """
    policy = Policy(model, one_document=one_document)
    with undisturbed(model):
        policy.leak = against_positions(policy)
        policy.passes.own_positions = policy.leak is not None
        if policy.leak is None and not one_document:
            policy.leak = against_isolation(policy)
        policy.passes.one_document = one_document or policy.leak is not None
        require_causality(policy)
        if score_of(policy.inner) is not None:
            require_score_of_last_token(policy)
            policy.features.append(("head", "a score of each sequence, at its last token"))
        else:
            policy.features.append(("head", _choose_head(policy)))
        if share_prefixes:
            against = against_sharing(policy)
            policy.shares_prefixes = against is None
            policy.features.append(("shared prefixes", f"repeated: {against}" if against else "computed once"))
    return policy


def _choose_head(policy: Policy) -> str:
    """Has the policy use the head as data, or the model's own logits. Which one, for the start summary."""
    why = "it has no backbone of its own" if policy.backbone is None else head_mismatch(policy)
    policy.own_logits = why is not None
    if why is None:
        return "on supervised positions only, read as data from the model"
    kept = "at supervised positions" if policy.keeps_logits else "at all positions"
    return f"the model's own logits {kept}: {why}"
