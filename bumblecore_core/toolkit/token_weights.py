"""Weights of supervised tokens, and the counts that they add up to."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

TOLERANCE = 1e-6  # relative, of counts that are not whole: a loss may add its weights up in float32


def as_count(total: float) -> int | float:
    """A sum of weights as a count: an int where it is whole, as it is where all weights are 1."""
    return int(total) if float(total).is_integer() else float(total)


def same_count(left: float, right: float) -> bool:
    """Whether two counts agree: exactly where both are whole, else within rounding."""
    if float(left).is_integer() and float(right).is_integer():
        return left == right
    return math.isclose(left, right, rel_tol=TOLERANCE)


def accepts_weights(loss: Any) -> bool:
    """Whether a loss takes the keyword `weights`. One whose signature is not known is taken to do so."""
    loss = inspect.unwrap(loss)
    function = getattr(loss, "forward", loss)  # torch.nn.Module.__call__ takes anything
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return "weights" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def checked_weights(weights: Sequence[float] | np.ndarray, spans: int) -> np.ndarray:
    """(spans,) float32 weights. Raises `ValueError` for another number of them, or one that no loss can use."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        factors = np.asarray(weights, dtype=np.float64).reshape(-1).astype(np.float32)
    if len(factors) != spans:
        raise ValueError(f"{len(factors)} weights for {spans} spans")
    if not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError("a weight that is negative, or that float32 cannot hold")
    return factors


def to_column(factors: np.ndarray) -> np.ndarray:
    """Float32 weights as a column of the token store: their bits as int32. Empty where all are 1."""
    return factors.view(np.int32) if (factors != 1).any() else np.zeros(0, dtype=np.int32)


def from_column(column: np.ndarray, spans: int) -> np.ndarray:
    """The (spans,) float32 weights that `to_column` wrote."""
    return column.view(np.float32) if len(column) else np.ones(spans, dtype=np.float32)
