"""What it costs where documents are computed one per forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bumblecore_core.run.data.loader import collate
from bumblecore_core.toolkit.policy import Policy

if TYPE_CHECKING:
    from bumblecore_core.run.assemble import Prepared


def document_passes(prepared: Prepared, policy: Policy) -> list[tuple[str, str]]:
    """The line for the start summary; none where a forward pass computes all documents of a micro-batch.

    The number of passes is that of the first optimizer step's micro-batches on average, rounded.
    """
    if not policy.one_document:
        return []
    micro_batches = [micro for rank in prepared.plan.window(0).micro_batches for micro in rank if micro.counts]
    documents = [len(collate(prepared.store, prepared.stage, micro.rows).document_lengths) for micro in micro_batches]
    passes = round(sum(documents) / len(documents))
    why = f" ({policy.leak})" if policy.leak else ""
    return [
        ("documents", f"one per forward pass{why}: about {passes} {'passes' if passes > 1 else 'pass'} per micro-batch")
    ]
