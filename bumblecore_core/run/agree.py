"""What all ranks do together, or none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bumblecore_core.errors import RunError, one
from bumblecore_core.protocols import Engine

T = TypeVar("T")


def on_all_ranks(engine: Engine, action: Callable[[], T], what: str) -> T:
    """Runs `action` on each rank and waits for the others, however long it takes them (see `Engine.barrier`); where it
    raised on one of them, it raises on all.

    The rank that failed raises its own exception, the others `RunError` BC067 that names `what`. `action` must hold no
    collective. A collective itself.
    """
    failure: Exception | None = None
    result: T | None = None
    try:
        result = action()
    except Exception as error:
        failure = error
    engine.barrier()
    failed = engine.sum_over_ranks(
        [float(failure is not None and rank == engine.rank) for rank in range(engine.world_size)]
    )
    if failure is not None:
        raise failure
    if any(failed):
        culprits = ", ".join(str(rank) for rank, flag in enumerate(failed) if flag)
        raise one(RunError, "BC067", f"{what} failed on rank {culprits}", "That rank's own error says why")
    return result  # type: ignore[return-value]
