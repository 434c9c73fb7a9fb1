"""How pairs of sequences with a common beginning lie in a micro-batch, and which positions are scored for a side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bumblecore_core.toolkit.packing import ranges


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`documents`: of each pair the chosen sequence, then what the rejected one has of its own; `shared_prefixes`: 0
    and the length of the common beginning, by turns; `extras`: see `PreferenceStage.collate`."""

    documents: list[np.ndarray]
    shared_prefixes: list[int]
    extras: dict[str, np.ndarray]


def shared_length(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens of the longest common beginning that leaves both sequences at least one token of their own."""
    most = min(len(one), len(other))
    differing = np.flatnonzero(one[:most] != other[:most])
    return min(int(differing[0]) if len(differing) else most, len(one) - 1, len(other) - 1)


def lay_out(examples: Sequence[Mapping[str, np.ndarray]], *, late_weight: float) -> Layout:
    """The layout of P pairs. `late_weight`: weight of a completion's tokens beyond the shorter one's length (α of
    Liu et al. 2024, "Length Desensitization in Direct Preference Optimization")."""
    documents: list[np.ndarray] = []
    shared_prefixes: list[int] = []
    positions: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    at: dict[str, list[np.ndarray]] = {"chosen": [], "rejected": []}
    weights: dict[str, list[np.ndarray]] = {"chosen": [], "rejected": []}
    start = scored = 0
    for example in examples:
        chosen, rejected = example["chosen_ids"], example["rejected_ids"]
        shared = shared_length(chosen, rejected)
        scored_of = {side: _scored(example[f"{side}_spans"]) for side in at}
        # The rejected side's tokens inside the common beginning are the chosen side's, where that scores them too.
        common = np.isin(scored_of["rejected"], scored_of["chosen"]) & (scored_of["rejected"] < shared)
        own = scored_of["rejected"][~common]
        in_chosen = start + scored_of["chosen"] - 1
        behind = start + len(chosen) - shared  # where the rejected sequence's position 0 would be
        in_rejected = np.where(own - 1 < shared, start + own - 1, behind + own - 1)
        indices = np.empty(len(scored_of["rejected"]), dtype=np.int64)
        indices[common] = scored + np.searchsorted(scored_of["chosen"], scored_of["rejected"][common])
        indices[~common] = scored + len(in_chosen) + np.arange(len(own))
        at["chosen"].append(scored + np.arange(len(in_chosen)))
        at["rejected"].append(indices)
        shorter = min(map(len, scored_of.values()))
        for side, found in scored_of.items():
            weights[side].append(np.where(np.arange(len(found)) < shorter, 1.0, late_weight).astype(np.float32))
        positions += [in_chosen, in_rejected]
        targets += [chosen[scored_of["chosen"]], rejected[own]]
        documents += [chosen, rejected[shared:]]
        shared_prefixes += [0, shared]
        start += len(chosen) + len(rejected) - shared
        scored += len(in_chosen) + len(own)
    extras = {"positions": np.concatenate(positions), "targets": np.concatenate(targets).astype(np.int64)}
    for side in at:
        extras[f"{side}_at"] = np.concatenate(at[side])
        extras[f"{side}_lengths"] = np.fromiter(map(len, at[side]), dtype=np.int64, count=len(examples))
        extras[f"{side}_weights"] = np.concatenate(weights[side])
    return Layout(documents=documents, shared_prefixes=shared_prefixes, extras=extras)


def _scored(spans: np.ndarray) -> np.ndarray:
    """The tokens of a flat list of [start, end), ascending."""
    edges = spans.reshape(-1, 2).astype(np.int64)
    return ranges(edges[:, 0], edges[:, 1])
