"""Several texts of one conversation as one example, their common beginnings computed once.

Where a chat template rewrites history, each trained turn is a text of its own. The prompt of the last one holds, as
history, what the earlier turns' prompts hold. So the last text is stored as a whole (the trunk), and of each other text
(a branch) only what comes after its common beginning with the trunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bumblecore_core.toolkit.token_weights import from_column, to_column
from bumblecore_core.values import TokenExample


def joined_turns(turns: Sequence[TokenExample], *, max_length: int) -> list[TokenExample]:
    """The examples of a conversation, given one for each of its turns, in order: as few as `max_length` tokens for each
    allow. Their column `prefixes` has for each branch where its own tokens begin, and how many tokens of the trunk come
    before them."""
    joined: list[TokenExample] = []
    group: list[TokenExample] = []
    for turn in reversed(turns):
        if group and (not _shared(group[0], turn) or _size([*group, turn]) > max_length):
            joined.append(_joined(group))
            group = []
        group.append(turn)
    return [*joined, _joined(group)][::-1]


def branches(example: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(where each branch's own tokens begin, how many tokens of the trunk come before them) of an example."""
    pairs = example["prefixes"].reshape(-1, 2).astype(np.int64)
    return pairs[:, 0], pairs[:, 1]


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens of the longest common beginning of two sequences."""
    most = min(len(one), len(other))
    differing = np.flatnonzero(one[:most] != other[:most])
    return int(differing[0]) if len(differing) else most


def _shared(trunk: TokenExample, turn: TokenExample) -> int:
    """Tokens that a branch shares with the trunk, none of which is trained in the branch."""
    return min(common_prefix(_column(trunk, "input_ids"), _column(turn, "input_ids")), int(_column(turn, "spans")[0]))


def _size(group: Sequence[TokenExample]) -> int:
    return group[0].length + sum(turn.length - _shared(group[0], turn) for turn in group[1:])


def _joined(group: Sequence[TokenExample]) -> TokenExample:
    """One example of a group whose first turn is the trunk."""
    trunk, at = group[0], group[0].length
    ids, spans, prefixes = [_column(trunk, "input_ids")], [_column(trunk, "spans")], []
    for turn in group[1:]:
        shared = _shared(trunk, turn)
        ids.append(_column(turn, "input_ids")[shared:])
        spans.append(_column(turn, "spans") + (at - shared))
        prefixes += [at, shared]
        at += turn.length - shared
    columns: dict[str, Any] = {
        "input_ids": np.concatenate(ids),
        "spans": np.concatenate(spans),
        "weights": to_column(np.concatenate([_weights(turn) for turn in group])),
        "prefixes": np.asarray(prefixes, dtype=np.int32),
    }
    return replace(
        trunk,
        columns=columns,
        length=at,
        count=sum(turn.count for turn in group),
        truncated=any(turn.truncated for turn in group),
        warnings=tuple(dict.fromkeys(warning for turn in reversed(group) for warning in turn.warnings)),
    )


def _column(example: TokenExample, name: str) -> np.ndarray:
    return np.asarray(example.columns[name], dtype=np.int32)


def _weights(turn: TokenExample) -> np.ndarray:
    return from_column(_column(turn, "weights"), len(turn.columns["spans"]) // 2)
