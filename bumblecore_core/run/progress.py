"""How far a run has come: what the loop counts, and the events that no checkpoint's history holds yet."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bumblecore_core.run.data.plan import Window
from bumblecore_core.toolkit.figures import depends_on_the_machine
from bumblecore_core.values import StepEvent


@dataclass(kw_only=True)
class Progress:
    """What the loop has done so far.

    `step`: optimizer steps; `tokens`: of all ranks; `evaluated`: the last step after which the evaluation ran, with its
    loss; `rows_digest`: SHA-256 chained over the rows of every window, in order; `last`: the newest figures by name
    (evaluation's with an `eval_` prefix); `events`: those reported since the last checkpoint; `pending`: what `Meter`
    has summed up since the last event, by figure as (total, steps).
    """

    step: int = 0
    epoch: float = 0.0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    evaluated: int = 0
    evaluation_loss: float = math.nan
    rows_digest: str = ""
    last: dict[str, float] = field(default_factory=dict)
    events: list[StepEvent] = field(default_factory=list)
    pending: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def good_steps(self) -> int:
        """Optimizer steps that were not skipped."""
        return self.step - self.skipped

    def count_window(self, window: Window, tokens: int) -> None:
        """Takes notice of an optimizer step."""
        digest = hashlib.sha256(self.rows_digest.encode())
        for rank in window.micro_batches:
            for micro in rank:
                digest.update(np.asarray([micro.counts, *micro.rows], dtype=np.int64).tobytes())
        self.rows_digest = digest.hexdigest()
        self.step += 1
        self.epoch = window.epoch_after
        self.tokens += tokens

    def take_events(self) -> list[StepEvent]:
        """The events since the last call, for the history file."""
        taken, self.events = self.events, []
        return taken

    def to_state(self) -> dict[str, Any]:
        """What a checkpoint holds: equal in every run of the same config on the same machine."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "evaluated": self.evaluated,
            "evaluation_loss": self.evaluation_loss,
            "rows_digest": self.rows_digest,
            "pending": {name: list(sums) for name, sums in self.pending.items()},
            "last": {name: value for name, value in self.last.items() if not depends_on_the_machine(name)},
        }

    @staticmethod
    def from_state(exact: Mapping[str, Any]) -> Progress:
        """What `to_state` took apart."""
        pending = {name: (float(total), int(steps)) for name, (total, steps) in exact["pending"].items()}
        return Progress(**{**exact, "pending": pending})
