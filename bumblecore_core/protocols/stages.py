"""What a stage is told, and what it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bumblecore_core.protocols.losses import Loss
from bumblecore_core.values import Batch, Dropped, Sample, StepOutput, TokenExample

if TYPE_CHECKING:
    import numpy as np

    from bumblecore_core.errors import RowError
    from bumblecore_core.toolkit.policy import Policy


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a stage may use: the tokenizer (transformers, its chat template set), `max_length` in tokens, and whether
    an oddity that is usually dropped with a warning must be an error (`strict`). `template_kwargs`: variables for the
    chat template; `template_date`: the day (YYYY-MM-DD) that it prints as today's; `special_tokens`: what special
    tokens inside a row's texts are read as. `toolkit.chat.chat_encoder` applies the last three."""

    tokenizer: Any
    max_length: int
    strict: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_date: str | None = None
    special_tokens: Literal["control", "text", "refuse"] = "control"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A frozen model that a stage compares with. `model`: `start` (the model that training begins with), `base` (the
    same without the adapter), or a model's directory. `columns`: names of the figures, one float32 per example each,
    that the stage's `reference_step` gives."""

    model: str
    columns: tuple[str, ...]


class Stage(Protocol):
    """Encodes samples to token examples and computes a step.

    `columns` names the ragged int32 columns that every example of this stage carries.

    Four more attributes are optional. `reference: Reference | None`, with a method
    `reference_step(*, policy, batch) -> dict[str, Tensor]` that gives each of its columns as (P,) figures of the
    batch's rows: the core computes them once for every example, keeps them on disk, and hands them to `collate` in each
    example as (1,) arrays; they are left out where the loss needs no reference. `shares_prefixes = True`: its batches
    have `shared_prefixes`. `least_rows`: how many rows an optimizer step must be set to hold; the core refuses fewer
    (BC039), unless packing makes several rows one. `statistics: tuple[str, ...]`, with a method
    `statistics_step(*, policy, batch) -> dict[str, Tensor]` that gives a scalar for each of these names, a sum over the
    batch's rows: before a step's first forward pass with a gradient, the core calls it without gradients for each of
    the step's micro-batches, adds its results up over these and all ranks, and puts the sums among the `extras` of each
    batch, as float64 scalars under the same names. In an evaluation they are sums over all of its rows. So a loss can
    compare with a figure of the step, and does not depend on how rows are dealt to micro-batches.
    """

    columns: tuple[str, ...]

    def encode(
        self, *, samples: Sequence[Sample]
    ) -> Sequence[TokenExample | Sequence[TokenExample] | Dropped | RowError]:
        """One entry per sample: an example, several (a long document cut up), a `Dropped`, or a `RowError` (returned,
        not raised). Called with hundreds of samples at a time, in worker processes too. Which samples of a file come
        together, in the file's order, depends on the file alone. `data.too_long` drops or refuses samples with a
        `truncated` example or a `Dropped` of BC028; a `truncated` example of `max_length` tokens or more counts as one
        without the end of its last turn."""
        ...

    def collate(
        self, *, examples: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int], counts: Sequence[float]
    ) -> Batch:
        """The padding-free micro-batch of `examples` (column name → (n,) int32 array), on the CPU."""
        ...

    def step(self, *, policy: Policy, batch: Batch, loss: Loss) -> StepOutput:
        """Forward pass and loss of one micro-batch that is already on the device."""
        ...

    def preview(self, *, example: Mapping[str, np.ndarray]) -> Sequence[tuple[str, bool]]:
        """The example decoded as (text, trained) segments, for the start summary."""
        ...
