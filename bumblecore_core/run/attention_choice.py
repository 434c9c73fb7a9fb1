"""The attention of a run: the best one with which the model is proven causal and keeps documents apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bumblecore_core.records import AttentionRecord
from bumblecore_core.run.attention import candidates, register
from bumblecore_core.run.attention_proof import Workload, not_causal, proof_config, require_prefixes, verdict_on


@dataclass(frozen=True, kw_only=True)
class AttentionChoice:
    """The attention of a run, and what is known of the model with it."""

    name: str
    implementation: str
    """Its name for transformers."""
    lines: tuple[str, ...] = ()
    """Why no better attention was chosen, and what is not proven."""
    against_isolation: str | None = None
    """Why documents must be computed one per forward pass, or None."""
    against_sharing: str | None = None
    """Why a shared prefix must be repeated, or None."""
    proven: bool = True
    """Whether a miniature was examined; where none can be built, the model itself must be."""

    @property
    def features(self) -> list[tuple[str, str]]:
        """(feature, what was decided) pairs for the start summary."""
        passes = [f"one document per forward pass: {self.against_isolation}"] if self.against_isolation else []
        chosen = ("attention", "; ".join([self.name, *passes, *self.lines]))
        return [chosen, *([("shared prefixes", f"repeated: {self.against_sharing}")] if self.against_sharing else [])]


def choose_attention(
    records: Sequence[AttentionRecord], name: str, workload: Workload, *, device: torch.device, dtype: torch.dtype
) -> AttentionChoice:
    """The attention called `name`, or the best one for `auto`: the first by priority with which the model is causal and
    keeps documents apart; else the first with which it is causal, for one document per forward pass.

    Raises `ModelError` BC065 where there is none, BC098 as `require_prefixes` does, and what `attention.candidates`
    raises.
    """
    small = proof_config(workload)
    lines: list[str] = []
    one_document: AttentionChoice | None = None
    for candidate in candidates(records, name, device=device, dtype=dtype):
        record = candidate.record
        if candidate.unsupported is not None:
            lines.append(f"not {record.name}: {candidate.unsupported}")
            continue
        implementation = register(record)
        if small is None:
            lines.append("not proven on a small copy of the model, which cannot be built: the model itself is examined")
            return AttentionChoice(name=record.name, implementation=implementation, lines=tuple(lines), proven=False)
        verdict = verdict_on(small, record, implementation, workload, device=device, dtype=dtype)
        choice = AttentionChoice(
            name=record.name,
            implementation=implementation,
            against_isolation=verdict.isolation,
            against_sharing=verdict.sharing,
        )
        if verdict.causality is None:
            require_prefixes(workload.config, verdict)
        if verdict.causality is None and verdict.isolation is None:
            return replace(choice, lines=tuple(lines))
        lines.append(f"not {record.name}: {verdict.causality or verdict.isolation}")
        if verdict.causality is None and one_document is None:
            one_document, own_line = choice, lines[-1]
    if one_document is not None:
        return replace(one_document, lines=tuple(line for line in lines if line != own_line))
    raise not_causal(workload.config, "; ".join(line.removeprefix("not ") for line in lines))
