"""The model as stages and losses see it: hidden states at kept positions, and the head as data.

A causal language model is a backbone and a head. Losses need the head's logits at supervised positions only, and a
fused loss needs the head's weight rather than its output. So the head is read from the model as (weight, bias, scale,
soft cap), and *verified*: a small probe compares it with the model's own logits, and compares a document's hidden
states beside two different neighbours. What cannot be described falls back to the model's own logits, and says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bumblecore_core.errors import ModelError, one
from bumblecore_core.values import Batch

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
PROBE_LENGTHS = (7, 5)
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
    """A causal language model that yields (hidden, head) at chosen positions of a padding-free batch.

    It holds the inner model only by reference; the module that an engine wraps is elsewhere. `features` are (feature,
    what was decided) lines for the start summary.
    """

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
        if self._single_document and len(batch.document_lengths) > 1:
            raise _leak("the policy was made for micro-batches of a single document", self._inner)
        if self._own_logits:
            return self._logits_at(batch, positions), Head(weight=None)
        head = self._read_head()
        assert isinstance(head, Head), head
        return self._hidden(batch).index_select(0, positions), head

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """(T, H): the backbone's last hidden state."""
        assert self._backbone is not None
        output = self._backbone(**_inputs(batch))
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _logits_at(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
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
        if any(getattr(linear, hooks) for hooks in MODULE_CALL_HOOKS) or "forward" in vars(linear):
            return "its output layer has hooks"
        config = self._inner.config.get_text_config()
        scale = 1.0
        for name in MULTIPLIERS:
            scale *= _number(config, name) or 1.0
        for name in DIVISORS:
            scale /= _number(config, name) or 1.0
        caps = [cap for name in SOFT_CAPS if (cap := _number(config, name)) is not None]
        return Head(weight=linear.weight, bias=linear.bias, scale=scale, soft_cap=caps[0] if caps else None)


def make_policy(model: torch.nn.Module, *, single_document: bool = False) -> Policy:
    """The verified policy of a transformers causal language model (PEFT-wrapped ones too), on its final device.

    A few tiny forward passes in evaluation mode decide: hidden states that depend on a neighbouring document raise
    ModelError (BC065), unless `single_document` promises that every micro-batch holds one document; a head that does
    not reproduce the model's own logits is replaced by these logits. Random state and training mode stay as they were.
    """
    policy = Policy(model, single_document=single_document)
    with _undisturbed(model):
        if not single_document:
            _check_isolation(policy)
        why = "it has no backbone of its own" if policy._backbone is None else _head_mismatch(policy)
    policy._own_logits = why is not None
    if why is None:
        policy.features.append(("head", "on supervised positions only, read as data from the model"))
    else:
        kept = "at supervised positions" if policy._keeps_logits else "at all positions"
        policy.features.append(("head", f"the model's own logits {kept}: {why}"))
    if single_document:
        policy.features.append(("documents", "one per micro-batch"))
    return policy


def _head_mismatch(policy: Policy) -> str | None:
    """Why the head as data does not give the model's own logits, or None where it does."""
    head = policy._read_head()
    if isinstance(head, str):
        return head
    probe = _probe_batch(policy, PROBE_LENGTHS[:1])
    hidden = policy._hidden(probe)
    own = policy.model(**_inputs(probe)).logits[0]
    same = head.weight is not None and hidden.shape[-1] == head.weight.shape[-1]
    if not same or not _close(head.logits(hidden), own):
        return "its logits differ from what its configuration says of them"
    return None


def _check_isolation(policy: Policy) -> None:
    """Raises BC065 unless a document's outputs are those that it has alone, whatever stands before it.

    Beside two different neighbours every shape is the same, so that the comparison can be sharp in any dtype.
    """
    first, second = PROBE_LENGTHS
    outputs = []
    for shift in (0, 1):
        outputs.append(_outputs(policy, _probe_batch(policy, PROBE_LENGTHS, shift=shift))[first:])
    alone = _outputs(policy, _probe_batch(policy, (second,), skip=first))
    if not _close(outputs[0], outputs[1], ulps=4.0):
        raise _leak("a document's hidden states change with the document before it", policy._inner)
    if not _close(outputs[0], alone):
        raise _leak("a document's hidden states differ from those that it has alone", policy._inner)


def _outputs(policy: Policy, batch: Batch) -> torch.Tensor:
    """(T, ·): hidden states, or logits of a model without a backbone of its own."""
    if policy._backbone is not None:
        return policy._hidden(batch)
    logits: torch.Tensor = policy.model(**_inputs(batch)).logits[0]
    return logits


def _probe_batch(policy: Policy, lengths: tuple[int, ...], *, shift: int = 0, skip: int = 0) -> Batch:
    """Documents of fixed token ids (no random numbers are drawn); `shift` changes those of the first one."""
    vocabulary = policy._inner.get_input_embeddings().weight.shape[0]
    device = policy._inner.get_input_embeddings().weight.device
    places = torch.arange(skip, skip + sum(lengths), device=device)
    ids = places * 7 + 3 + torch.where(places < PROBE_LENGTHS[0], shift, 0)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Batch(
        input_ids=(ids % vocabulary)[None],
        position_ids=torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        cu_seqlens=starts.to(torch.int32).to(device),
        document_lengths=lengths,
        rows=tuple(range(len(lengths))),
        count=0,
    )


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
    }


@contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; random state and every module's own mode are restored."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


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


def _close(left: torch.Tensor, right: torch.Tensor, *, ulps: float = 12.0) -> bool:
    """Equal up to `ulps` roundings of the coarser dtype, relative to the largest magnitude (12 in bf16 is 9 %)."""
    if left.shape != right.shape:
        return False
    coarser = max(torch.finfo(left.dtype).eps, torch.finfo(right.dtype).eps, 1e-6)
    left, right = left.float(), right.float()
    return bool((left - right).abs().max() <= ulps * coarser * right.abs().max())


def _leak(problem: str, inner: Any) -> Exception:
    return one(
        ModelError,
        "BC065",
        f"{problem} (model type {getattr(inner.config, 'model_type', '?')}, "
        f"attention {getattr(inner.config, '_attn_implementation', '?')})",
        "set train.micro_batch_size to 1 and data.packing to false (one document at a time needs no isolation), or "
        "choose another model.attention",
    )
