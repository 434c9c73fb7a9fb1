"""Rows that are held out for evaluation."""

from __future__ import annotations

import numpy as np

from bumblecore_core.errors import DataError, one
from bumblecore_core.toolkit.seeds import derive_seed


def split_eval(rows: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, evaluation) indices of examples, each sorted. `rows`: (n,) the row of each example, counted from 0.

    A `share` of the rows (at least one, never all) is drawn for evaluation, the same rows for the same seed, with all
    their examples: pieces of one document on both sides would make the evaluation loss too good. Raises `DataError`
    BC008 for fewer than two rows.
    """
    count = int(rows[-1]) + 1 if len(rows) else 0
    if count < 2:
        problem = f"data.eval_split cannot hold out a part of {count} row(s)"
        fix = "Add data, leave data.eval_split out, or set data.eval_path"
        raise one(DataError, "BC008", problem, fix, field="data.eval_split")
    number = min(count - 1, max(1, round(count * share)))
    order = np.random.default_rng(derive_seed(seed, "eval_split")).permutation(count)
    is_held_out = np.zeros(count, dtype=bool)
    is_held_out[order[:number]] = True
    return np.flatnonzero(~is_held_out[rows]), np.flatnonzero(is_held_out[rows])
