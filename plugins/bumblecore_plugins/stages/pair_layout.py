"""What the stages of pairs share: two sequences with a common beginning, in tokens, in a micro-batch, and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bumblecore_core import Batch, ChatSample, Dropped, PreferenceSample, RowError
from bumblecore_core.toolkit.chat import ChatEncoder, EncodedChat
from bumblecore_core.toolkit.packing import ranges
from bumblecore_core.toolkit.preview import marked
from bumblecore_core.toolkit.turns import common_prefix

SIDES = ("chosen", "rejected")
COLUMNS = ("chosen_ids", "chosen_spans", "rejected_ids", "rejected_spans")
WEIGHTS_UNREAD = "BC083 the weight of a message in a completion is read by the stage sft only"
EQUAL = Dropped(code="BC017", reason="chosen equals rejected")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`documents`: of each pair the chosen sequence, then what the rejected one has of its own; `shared_prefixes`: 0
    and the length of the common beginning, by turns; `extras`: see `PreferenceStage.collate`."""

    documents: list[np.ndarray]
    shared_prefixes: list[int]
    extras: dict[str, np.ndarray]


def encoded_pairs(
    encoder: ChatEncoder, samples: Sequence[PreferenceSample]
) -> list[tuple[EncodedChat, EncodedChat] | Dropped | RowError]:
    """Both sequences of each pair, or why one of them cannot be had."""
    chats = [
        ChatSample(
            messages=(*sample.prompt, *getattr(sample, side)),
            tools=sample.tools,
            template_kwargs=sample.template_kwargs,
        )
        for sample in samples
        for side in SIDES
    ]
    first = [len(sample.prompt) for sample in samples for _ in SIDES]
    encoded = encoder(chats, first)
    found: list[tuple[EncodedChat, EncodedChat] | Dropped | RowError] = []
    for at in range(0, len(encoded), 2):
        chosen, rejected = (named_side(encoded[at + i], side, first[at]) for i, side in enumerate(SIDES))
        if not isinstance(chosen, EncodedChat):
            found.append(chosen)
        elif not isinstance(rejected, EncodedChat):
            found.append(rejected)
        else:
            found.append((chosen, rejected))
    return found


def named_side(result: EncodedChat | Dropped | RowError, side: str, first: int) -> EncodedChat | Dropped | RowError:
    """An error about a message of the completion names its place in `chosen` or `rejected`."""
    if not isinstance(result, RowError):
        return result
    problem = result.problem
    head, bracket, rest = problem.field.partition("[")
    number, _, tail = rest.partition("]")
    if head != "messages" or not bracket or not number.isdigit():
        return result
    at = int(number)
    field = f"prompt[{at}]{tail}" if at < first else f"{side}[{at - first}]{tail}"
    return RowError(code=problem.code, field=field, problem=problem.problem, fix=problem.fix)


def warnings_of(*chats: EncodedChat) -> tuple[str, ...]:
    """What was odd about a pair's sequences, each said once."""
    weighted = (WEIGHTS_UNREAD,) if any(chat.weights for chat in chats) else ()
    return tuple(dict.fromkeys([*weighted, *(warning for chat in chats for warning in chat.warnings)]))


def preview_pair(tokenizer: Any, example: Mapping[str, np.ndarray]) -> list[tuple[str, bool]]:
    """The chosen sequence, then what the rejected one has in place of its completion, both with their trained spans."""
    completion = int(example["rejected_spans"][0])
    return [
        *marked(tokenizer, example["chosen_ids"].tolist(), example["chosen_spans"]),
        ("\n(rejected instead:)\n", False),
        *marked(tokenizer, example["rejected_ids"].tolist(), example["rejected_spans"], start=completion),
    ]


def shared_length(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens of the longest common beginning that leaves both sequences at least one token of their own."""
    return min(common_prefix(one, other), len(one) - 1, len(other) - 1)


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


def summed(tokens: torch.Tensor, batch: Batch, side: str, *, weighted: bool = True) -> torch.Tensor:
    """(P,) float64 sums over each pair's tokens of one side: what a loss makes of a pair is a difference of numbers in
    the hundreds. By `segment_reduce`, which gives the same bits each time."""
    picked = tokens.index_select(0, batch.extras[f"{side}_at"]).double()
    if weighted:
        picked = picked * batch.extras[f"{side}_weights"]
    found: torch.Tensor = torch.segment_reduce(picked, "sum", lengths=batch.extras[f"{side}_lengths"], unsafe=True)
    return found


def _scored(spans: np.ndarray) -> np.ndarray:
    """The tokens of a flat list of [start, end), ascending."""
    edges = spans.reshape(-1, 2).astype(np.int64)
    return ranges(edges[:, 0], edges[:, 1])
