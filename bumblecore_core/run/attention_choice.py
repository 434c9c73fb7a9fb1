"""The attention of a run: the best one with which the model is proven causal and keeps documents apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bumblecore_core.records import AttentionRecord
from bumblecore_core.run.attention import candidates, register
from bumblecore_core.run.attention_proof import Workload, against, proof_config, verdict_on


@dataclass(frozen=True, kw_only=True)
class AttentionChoice:
    """The attention of a run, and what is known of the model with it."""

    name: str
    implementation: str
    """Its name for transformers."""
    lines: tuple[str, ...] = ()
    """Why each attention of a higher priority was not chosen, and what is not proven."""
    against_sharing: str | None = None
    """Why a shared prefix must be repeated, or None."""
    proven: bool = True
    """Whether a miniature was examined; where none can be built, the model itself must be."""

    @property
    def features(self) -> list[tuple[str, str]]:
        """(feature, what was decided) pairs for the start summary."""
        chosen = ("attention", "; ".join([self.name, *self.lines]))
        return [chosen, *([("shared prefixes", f"repeated: {self.against_sharing}")] if self.against_sharing else [])]


def choose_attention(
    records: Sequence[AttentionRecord], name: str, workload: Workload, *, device: torch.device, dtype: torch.dtype
) -> AttentionChoice:
    """The attention called `name`, or the best one for `auto`: the first by priority with which the model is causal and
    keeps documents apart.

    Raises `ModelError` BC065 where there is none, and what `attention.candidates` raises.
    """
    found = candidates(records, name, device=device, dtype=dtype)
    small = proof_config(workload)
    lines: list[str] = []
    faults: list[str] = []
    causal = False
    for candidate in found:
        record = candidate.record
        if candidate.unsupported is not None:
            lines.append(f"not {record.name}: {candidate.unsupported}")
            continue
        implementation = register(record)
        if small is None:
            lines.append("not proven on a small copy of the model, which cannot be built: the model itself is examined")
            return AttentionChoice(name=record.name, implementation=implementation, lines=tuple(lines), proven=False)
        verdict = verdict_on(small, record, implementation, workload, device=device, dtype=dtype)
        if verdict.causality is None and verdict.isolation is None:
            return AttentionChoice(
                name=record.name,
                implementation=implementation,
                lines=tuple(lines),
                against_sharing=verdict.sharing,
            )
        faults.append(f"{record.name}: {verdict.causality or verdict.isolation}")
        lines.append(f"not {faults[-1]}")
        causal = causal or verdict.causality is None
    raise against(workload.config, "; ".join(faults), causal=causal)
