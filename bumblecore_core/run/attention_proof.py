"""What is proven of a model with an attention before the model is there: the verdict on a miniature of it.

The miniature (see `toolkit.miniature`) runs on the CPU in float32 where the attention can, so that rounding hides
nothing; the verdict is kept for the process, since a run asks for it more than once.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from bumblecore_core.errors import BumbleError, ModelError, one
from bumblecore_core.records import AttentionRecord
from bumblecore_core.run.attention import unsupported
from bumblecore_core.toolkit.miniature import (
    MOST_PARAMETERS,
    VOCABULARY,
    RunSizes,
    make_miniature,
    small_configs,
)
from bumblecore_core.toolkit.policy import Policy
from bumblecore_core.toolkit.probes import undisturbed
from bumblecore_core.toolkit.proofs import Documents, States, Verdict, against_truncation, failure, prove
from bumblecore_core.toolkit.quiet import quiet_trial
from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_core.toolkit.vision_language import auto_class, prepare_for_text
from bumblecore_core.values import Batch

CAUSAL_FIX = "Use a causal language model (an encoder needs is_decoder: true in its config.json), or another attention"
CPU = torch.device("cpu")
PLAIN = ("eager", "sdpa")
"""Implementations of transformers: every model has one of them."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run asks of its model."""

    config: Any
    """The transformers config."""
    trust_remote_code: bool = False
    sizes: RunSizes = field(default_factory=RunSizes)
    """The lengths that the run reaches; by default beyond every limit of the model."""
    several_documents: bool = True
    """Whether micro-batches may hold more than one document."""
    shares_prefixes: bool = False
    """Whether documents of a micro-batch may share a prefix."""


@dataclass(frozen=True)
class ProofConfig:
    """A transformers config that compares by its content."""

    text: str
    config: Any = field(compare=False)
    trust_remote_code: bool

    @classmethod
    def of(cls, config: Any, trust_remote_code: bool) -> ProofConfig:
        """The config with its content as text; where it was read from matters only for code next to it."""
        values = config.to_dict()
        if not trust_remote_code:
            values.pop("_name_or_path", None)
        text = json.dumps([type(config).__module__, type(config).__qualname__, values], sort_keys=True, default=repr)
        return cls(text, config, trust_remote_code)

    def build(self, attention: str) -> Any:
        """The model of this config in float32, on the default device."""
        model = auto_class(self.config).from_config(
            copy.deepcopy(self.config),
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=self.trust_remote_code,
        )
        prepare_for_text(model)
        return model


def proof_config(workload: Workload) -> ProofConfig | None:
    """The smallest config for a miniature of the model, or None where no miniature can be built and run."""
    try:
        return _first_that_runs(ProofConfig.of(workload.config, workload.trust_remote_code), workload.sizes)
    except Exception:  # a config that describes no language model, or one that cannot be shrunk
        return None


def verdict_on(
    small: ProofConfig,
    record: AttentionRecord,
    implementation: str,
    workload: Workload,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Verdict:
    """What is wrong with the miniature of `small` with an attention that runs on `device` in `dtype`."""
    return _verdict(
        small,
        record,
        implementation,
        _place_of_proof(record, device, dtype),
        isolation=workload.several_documents,
        sharing=workload.shares_prefixes,
    )


def examine(model: Any, *, several_documents: bool, shares_prefixes: bool = False) -> str | None:
    """Why documents must be computed one per forward pass by a model for which there is no miniature, or None: the same
    checks of the model itself, on its own device in its own dtype. Raises `ModelError` BC065 where it is not causal,
    and BC098 as `require_prefixes` does."""
    embedding = model.get_input_embeddings().weight
    vocabulary = whole_shape(embedding)[0]
    with undisturbed(model):
        try:
            verdict = _proof(model, vocabulary, embedding.device, isolation=several_documents, sharing=shares_prefixes)
        except Exception as error:
            verdict = Verdict(causality=failure(error))
    if verdict.causality is not None:
        raise not_causal(model.config, verdict.causality)
    require_prefixes(model.config, verdict)
    return verdict.isolation


def require_prefixes(config: Any, verdict: Verdict) -> None:
    """Raises `ModelError` BC098 where documents that share a prefix would get each other's states of it."""
    if verdict.truncation is None:
        return
    model_type = getattr(config, "model_type", "?")
    problem = f"the stage shares prefixes between documents, but with the model type {model_type} {verdict.truncation}"
    fix = "Set it to the length up to which the position embeddings of config.json stay the same, or less"
    raise one(ModelError, "BC098", problem, fix, field="data.max_length")


def not_causal(config: Any, problem: str) -> BumbleError:
    """BC065 for a model with which no document can be computed exactly."""
    problem = f"the model (type {getattr(config, 'model_type', '?')}) cannot be trained as a causal one ({problem})"
    return one(ModelError, "BC065", problem, CAUSAL_FIX, field="model.attention")


def _place_of_proof(
    record: AttentionRecord, device: torch.device, dtype: torch.dtype
) -> tuple[torch.device, torch.dtype]:
    """Where the miniature runs: on the CPU in float32 if the attention can, else as near to that as it can."""
    for place in ((CPU, torch.float32), (device, torch.float32)):
        if unsupported(record, *place) is None:
            return place
    return device, dtype


@lru_cache(maxsize=64)
def _verdict(
    small: ProofConfig,
    record: AttentionRecord,  # part of the key: another plugin may use the same name
    implementation: str,
    place: tuple[torch.device, torch.dtype],
    *,
    isolation: bool,
    sharing: bool,
) -> Verdict:
    device, dtype = place
    with quiet_trial():
        try:
            model = _miniature(small, implementation).to(device=device, dtype=dtype)
            return _proof(model, VOCABULARY, device, isolation=isolation, sharing=sharing)
        except Exception as error:
            unknown = isinstance(error, KeyError) and error.args == (implementation,)
            fixed = "this model type has its own attention implementations, and no other can be added"
            return Verdict(causality=fixed if unknown else failure(error))


def _proof(model: Any, vocabulary: int, device: torch.device, *, isolation: bool, sharing: bool = False) -> Verdict:
    """The verdict on all documents in one forward pass; where these do not stay apart, or without `isolation`, its
    causality is that of one document per forward pass."""
    together = Policy(model, one_document=not isolation)
    verdict = prove(
        model_states(together),
        vocabulary=vocabulary,
        device=device,
        isolation=isolation,
        shared_states=_shared_states(together) if sharing else None,
    )
    used = model_states(together)
    if verdict.isolation is not None:
        used = model_states(Policy(model, one_document=True))
        causality = prove(used, vocabulary=vocabulary, device=device, isolation=False).causality
        verdict = replace(verdict, causality=causality)
    if sharing and verdict.causality is None:
        return replace(verdict, truncation=against_truncation(used, Documents(vocabulary, device)))
    return verdict


@lru_cache(maxsize=64)
def _first_that_runs(whole: ProofConfig, sizes: RunSizes) -> ProofConfig | None:
    with quiet_trial():
        for config in small_configs(whole.config, sizes):
            small = ProofConfig.of(config, whole.trust_remote_code)
            if any(_runs(small, attention) for attention in PLAIN):
                return small
    return None


def _runs(small: ProofConfig, attention: str) -> bool:
    document = Documents(VOCABULARY, CPU)
    try:
        with torch.device("meta"):
            if sum(parameter.numel() for parameter in small.build(attention).parameters()) > MOST_PARAMETERS:
                return False
        states = model_states(Policy(_miniature(small, attention)))(document.batch([document.tokens(5)]))
    except Exception:
        return False
    return bool(torch.isfinite(states).all())


def _miniature(small: ProofConfig, attention: str) -> Any:
    return make_miniature(lambda: small.build(attention))


def model_states(policy: Policy) -> States:
    """The hidden states of every token, or the logits where the model's head cannot be read."""

    def states(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            positions = torch.arange(batch.tokens, device=batch.input_ids.device)
            return policy.project(batch=batch, positions=positions)[0]

    return states


def _shared_states(policy: Policy) -> States:
    """The same, with each shared prefix computed once."""
    states = model_states(policy)

    def shared_states(batch: Batch) -> torch.Tensor:
        policy.shares_prefixes = True
        try:
            return states(batch)
        finally:
            policy.shares_prefixes = False

    return shared_states
