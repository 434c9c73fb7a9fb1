"""The model as stages and losses see it: hidden states at kept positions, and the head as data.

A causal language model is a backbone and a head. Losses need the head's logits at supervised positions only, and a
fused loss needs the head's weight rather than its output. So the head is read from the model as (weight, bias, scale,
soft cap), and *verified*: a small probe compares it with the model's own logits, and compares a document's hidden
states beside two different neighbours. What cannot be described falls back to the model's own logits, and says so.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bumblecore_core.errors import ModelError, one
from bumblecore_core.toolkit.packing import unshared
from bumblecore_core.toolkit.probes import PROBE_LENGTHS, close, probe_batch, undisturbed
from bumblecore_core.toolkit.scorers import score_of
from bumblecore_core.toolkit.shards import gathers_weights
from bumblecore_core.values import Batch

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
MODULE_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head as data: `soft_cap · tanh(scale · (hidden @ weightᵀ + bias) / soft_cap)`, uncapped where that is None.

    `weight`: (V, H) parameter, or None where `hidden` already holds logits; `bias`: (V,) or None.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, V) logits of (N, H) hidden states, in the weight's dtype (or `hidden` itself without a weight)."""
        if self.weight is None:
            return hidden
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits


class Policy:
    """A causal language model that yields (hidden, head) at chosen positions of a padding-free batch, or a reward model
    that yields scores there.

    It holds the inner model only by reference; the module that an engine wraps is elsewhere. `features` are (feature,
    what was decided) lines for the start summary. `shares_prefixes`: whether the model computes a shared prefix once
    (see `Batch`); where it does not, it is repeated here, which changes no number.
    """

    shares_prefixes = False

    def __init__(self, model: torch.nn.Module, *, single_document: bool = False) -> None:
        self.model = model
        self.features: list[tuple[str, str]] = []
        self._single_document = single_document
        self._inner: Any = _without_adapter(model)
        self._backbone = _backbone_of(self._inner)
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._inner.forward).parameters
        self._own_logits = self._backbone is None or isinstance(self._read_head(), str)

    def project(self, *, batch: Batch, positions: torch.Tensor) -> tuple[torch.Tensor, Head]:
        """Hidden states (N, H) at `positions` (N,) int64 of the batch's T tokens, and the head that turns them into
        logits. Where the head is not describable, logits (N, V) and a head without weight.

        Raises ModelError (BC065) for several documents in a batch when the policy was made for single documents.
        """
        self._require_isolation(batch)
        if self._own_logits:
            return self._logits_at(batch, positions), Head(weight=None)
        head = self._read_head()
        assert isinstance(head, Head), head
        return self._hidden(batch).index_select(0, positions), head

    def scores(self, *, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """(N,) float32: what a reward model says at `positions` (N,) int64. Raises as `project` does."""
        self._require_isolation(batch)
        found: torch.Tensor = score_of(self._inner)(self._hidden(batch).index_select(0, positions))
        return found[:, 0].float()

    def _require_isolation(self, batch: Batch) -> None:
        if self._single_document and len(batch.document_lengths) > 1:
            raise _leak("the policy was made for micro-batches of a single document", self._inner)

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """(T, H): the backbone's last hidden state."""
        assert self._backbone is not None
        if batch.shared_prefixes and not self.shares_prefixes:
            expanded, places = unshared(batch)
            return self._hidden(expanded).index_select(0, places)
        output = self._backbone(**_inputs(batch))
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _logits_at(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        if batch.shared_prefixes and not self.shares_prefixes:
            batch, places = unshared(batch)
            positions = places.index_select(0, positions)
        if self._keeps_logits:
            kept: torch.Tensor = self.model(**_inputs(batch), logits_to_keep=positions).logits[0]
            if kept.shape[0] == positions.shape[0]:
                return kept
            self._keeps_logits = False
        logits: torch.Tensor = self.model(**_inputs(batch)).logits[0]
        return logits.index_select(0, positions)

    def _read_head(self) -> Head | str:
        """The head as data, read anew so that a replaced parameter is never stale; or why it cannot be described."""
        linear = self._inner.get_output_embeddings()
        if type(linear) is not torch.nn.Linear:
            return f"its output layer is a {type(linear).__name__}, not a plain Linear"
        hooks = [hook for kind in MODULE_CALL_HOOKS for hook in getattr(linear, kind).values()]
        if not all(map(gathers_weights, hooks)) or "forward" in vars(linear):
            return "its output layer has hooks"
        config = self._inner.config.get_text_config()
        scale = 1.0
        for name in MULTIPLIERS:
            scale *= _number(config, name) or 1.0
        for name in DIVISORS:
            scale /= _number(config, name) or 1.0
        caps = [cap for name in SOFT_CAPS if (cap := _number(config, name)) is not None]
        return Head(weight=linear.weight, bias=linear.bias, scale=scale, soft_cap=caps[0] if caps else None)


def make_policy(model: torch.nn.Module, *, single_document: bool = False, share_prefixes: bool = False) -> Policy:
    """The verified policy of a transformers causal language model (PEFT-wrapped ones too), or of a reward model, on its
    final device.

    A few tiny forward passes in evaluation mode decide: hidden states that depend on a neighbouring document raise
    ModelError (BC065), unless `single_document` promises that every micro-batch holds one document; a head that does
    not reproduce the model's own logits is replaced by these logits; a reward model whose own score of a sequence is
    not that of its last token raises ModelError (BC064). With `share_prefixes` a shared prefix is computed
    once where the model then gives what it gives for the repeated one. Random state and training mode stay as they
    were.
    """
    policy = Policy(model, single_document=single_document)
    with undisturbed(model):
        if not single_document:
            _check_isolation(policy)
        scores = score_of(policy._inner) is not None
        if scores:
            _check_score(policy)
            why = None
        else:
            why = "it has no backbone of its own" if policy._backbone is None else _head_mismatch(policy)
        against = _against_sharing(policy) if share_prefixes else None
    policy._own_logits = why is not None
    if scores:
        policy.features.append(("head", "a score of each sequence, at its last token"))
    elif why is None:
        policy.features.append(("head", "on supervised positions only, read as data from the model"))
    else:
        kept = "at supervised positions" if policy._keeps_logits else "at all positions"
        policy.features.append(("head", f"the model's own logits {kept}: {why}"))
    if share_prefixes:
        policy.shares_prefixes = against is None
        policy.features.append(("shared prefixes", f"repeated: {against}" if against else "computed once"))
    if single_document:
        policy.features.append(("documents", "one per micro-batch"))
    return policy


def head_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Weight and bias of a head that is read as data; empty for one that is only ever called."""
    linear = _without_adapter(model).get_output_embeddings()  # type: ignore[operator]
    return list(linear.parameters()) if type(linear) is torch.nn.Linear else []


def _head_mismatch(policy: Policy) -> str | None:
    """Why the head as data does not give the model's own logits, or None where it does."""
    head = policy._read_head()
    if isinstance(head, str):
        return head
    probe = probe_batch(policy._inner, PROBE_LENGTHS[:1])
    hidden = policy._hidden(probe)
    own = policy.model(**_inputs(probe)).logits[0]
    same = head.weight is not None and hidden.shape[-1] == head.weight.shape[-1]
    if not same or not close(head.logits(hidden), own):
        return "its logits differ from what its configuration says of them"
    return None


def _check_score(policy: Policy) -> None:
    """Raises BC064 unless a reward model's own score of a sequence is that of its last token which is no padding."""
    probe = probe_batch(policy._inner, PROBE_LENGTHS[:1])
    own = policy.model(**_inputs(probe)).logits
    pad = policy._inner.config.get_text_config().pad_token_id
    last = (probe.input_ids[0] != (-1 if pad is None else pad)).nonzero()[-1]
    if policy._backbone is not None and close(policy.scores(batch=probe, positions=last), own[:, 0]):
        return
    problem = f"{type(policy._inner).__name__} does not score a sequence by its module 'score' at the last token"
    raise one(ModelError, "BC064", problem, "Use a decoder model such as llama or qwen3", field="model.path")


def _check_isolation(policy: Policy) -> None:
    """Raises BC065 unless a document's outputs are those that it has alone, whatever stands before it.

    Beside two different neighbours every shape is the same, so that the comparison can be sharp in any dtype.
    """
    first, second = PROBE_LENGTHS
    outputs = []
    for shift in (0, 1):
        outputs.append(_outputs(policy, probe_batch(policy._inner, PROBE_LENGTHS, shift=shift))[first:])
    alone = _outputs(policy, probe_batch(policy._inner, (second,), skip=first))
    if not close(outputs[0], outputs[1], ulps=4.0):
        raise _leak("a document's hidden states change with the document before it", policy._inner)
    if not close(outputs[0], alone):
        raise _leak("a document's hidden states differ from those that it has alone", policy._inner)


def _against_sharing(policy: Policy) -> str | None:
    """Why a prefix cannot be computed once for two documents, or None where it can."""
    if next(policy.model.parameters()).is_cuda:
        return "on a GPU all documents go through one kernel, which takes none"
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in policy.model.modules()):
        return "dropout would be the same for both documents"
    if any(value for name, value in policy._inner.config.get_text_config().to_dict().items() if name in DROPOUTS):
        return "attention dropout would be the same for both documents"
    lengths = (*PROBE_LENGTHS, PROBE_LENGTHS[1])
    shared = probe_batch(policy._inner, lengths, shared=(0, PROBE_LENGTHS[0] - 2, PROBE_LENGTHS[0] - 3))
    expanded, places = unshared(shared)
    alone = _outputs(policy, expanded).index_select(0, places)
    policy.shares_prefixes = True
    try:
        together = _outputs(policy, shared)
    finally:
        policy.shares_prefixes = False
    return None if close(together, alone) else "this attention keeps documents apart"


def _outputs(policy: Policy, batch: Batch) -> torch.Tensor:
    """(T, ·): hidden states, or logits of a model without a backbone of its own."""
    if policy._backbone is not None:
        return policy._hidden(batch)
    logits: torch.Tensor = policy.model(**_inputs(batch)).logits[0]
    return logits


def _inputs(batch: Batch) -> dict[str, Any]:
    """What the backbone gets; transformers passes the keys after `use_cache` through to the attention function."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
        "cu_seq_lens_q": batch.cu_seqlens,
        "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": batch.max_seqlen,
        "max_length_k": batch.max_seqlen,
        "document_lengths": batch.document_lengths,
        **({"shared_prefixes": batch.shared_prefixes} if batch.shared_prefixes else {}),
    }


def _without_adapter(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside a PEFT wrapper (its adapted layers stay in place), or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def _backbone_of(inner: Any) -> torch.nn.Module | None:
    """The module whose output is the last hidden state, or None where the model has no such part."""
    for found in (
        getattr(inner, inner.base_model_prefix, None) if inner.base_model_prefix else None,
        inner.get_decoder(),
    ):
        if isinstance(found, torch.nn.Module) and found is not inner:
            return found
    return None


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _leak(problem: str, inner: Any) -> Exception:
    return one(
        ModelError,
        "BC065",
        f"{problem} (model type {getattr(inner.config, 'model_type', '?')}, "
        f"attention {getattr(inner.config, '_attn_implementation', '?')})",
        "set train.micro_batch_size to 1 and data.packing to false (one document at a time needs no isolation), or "
        "choose another model.attention",
    )
