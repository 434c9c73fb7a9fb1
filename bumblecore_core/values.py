"""The data that flows: samples, token examples, batches, step outputs, and what loggers are told.

Nothing here imports torch when it is loaded: the command line's help and listing paths read this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

SampleKind: TypeAlias = Literal["text", "chat", "preference", "feedback"]
LossKind: TypeAlias = Literal["token", "preference", "feedback", "reward"]
ModelHead: TypeAlias = Literal["language_model", "score"]
Message: TypeAlias = dict[str, Any]
"""A chat message: `role` (system, user, assistant, tool) and `content` (text). An assistant's may have `tool_calls`
(`[{"type": "function", "function": {"name": …, "arguments": {…}}}]`; arguments that are no JSON object are text, such
as code), `reasoning_content`, and `weight`, a factor on the loss of its tokens: 0 is context only. A tool's may have
`tool_call_id` and `name`. The encoder passes all but `weight` to the chat template, in the form that it reads."""
Reduction: TypeAlias = Literal["mean", "sum", "last"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSample:
    """Plain text to model from its first token to its last. `warnings`: see `ChatSample`."""

    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSample:
    """A conversation. `tools`: JSON tool definitions for the chat template; `template_kwargs`: further variables for
    it; `warnings`: what the format found odd about the row, counted in the report of the data."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceSample:
    """A prompt with a preferred and a dispreferred continuation (each one or more messages). See `ChatSample`."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackSample:
    """A prompt with one continuation (one or more messages); `label`: whether it is desirable. See `ChatSample`."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


Sample: TypeAlias = TextSample | ChatSample | PreferenceSample | FeedbackSample


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenExample:
    """What a stage makes of a sample: ragged int32 columns, stored in the token shards.

    `length`: tokens that the example takes in a micro-batch. `count`: what its loss will report as count, which for a
    token loss is the number of supervised *shifted* labels (the sum of their weights where they have any), for other
    losses 1. `truncated`: something was cut.
    """

    columns: Mapping[str, Sequence[int]]
    length: int
    count: int | float
    truncated: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A sample that a stage leaves out on purpose: counted under `reason` and shown, never silent."""

    code: str
    reason: str


@dataclass(kw_only=True, slots=True)
class Batch:
    """A padding-free micro-batch: documents concatenated into one sequence of T tokens.

    `input_ids`, `position_ids`: (1, T) int64, positions restart at 0 with each document. `cu_seqlens`: (D + 1,) int32,
    where each of the D documents starts, and T. `document_lengths`: the same as Python ints, so that CPU attention
    needs no device sync. `extras`: tensors that the stage's own step reads. `rows`: indices of the examples in the
    token store. `count`: sum of the examples' counts. `head_positions`: positions that the head computes, where they
    are not as many as `count` (for preference pairs, say). `items`: the number of items (positions, pairs, rows) where
    `count` is the sum of their weights. `shared_prefixes`: for each document how many tokens of its trunk, the last
    document before it without such a prefix, are its prefix as well, without being repeated: it attends to them, and
    its positions begin after them. Empty where no document has one.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    document_lengths: tuple[int, ...]
    rows: tuple[int, ...]
    count: int | float
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    head_positions: int | None = None
    items: int | None = None
    shared_prefixes: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """T, the tokens of this micro-batch."""
        return sum(self.document_lengths)

    @property
    def counted(self) -> int:
        """How many items `count` is of, whatever their weights."""
        return int(self.count) if self.items is None else self.items

    @property
    def scored(self) -> int:
        """Positions that the head computes."""
        return self.counted if self.head_positions is None else self.head_positions

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest document."""
        return max(self.document_lengths)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; non-blocking where the source is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in pinned memory (DataLoader calls this when `pin_memory` is on)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Any) -> Batch:
        moved: dict[str, Any] = {
            f.name: change(getattr(self, f.name)) for f in fields(self) if hasattr(getattr(self, f.name), "device")
        }
        return replace(self, **moved, extras={name: change(tensor) for name, tensor in self.extras.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A figure that knows how it reduces over micro-batches and ranks.

    `mean`: sum of totals ÷ sum of weights; `sum`: sum of totals; `last`: the last micro-batch's total on rank 0.
    """

    total: torch.Tensor | float
    weight: torch.Tensor | float = 1.0
    reduce: Reduction = "mean"


@dataclass(kw_only=True, slots=True)
class StepOutput:
    """What a loss, and with it a stage's step, returns: a scalar float32 *sum*, the count it sums over (the sum of the
    items' weights where they have any), and metrics.

    The core divides by the count of the whole optimizer step, so no plugin can mis-scale accumulation. `per_example`:
    figures of each row of the batch, which the core collects when it asks a reference model. `expert_assignments`:
    (layers, experts) int64, set by the core for a mixture of experts: the number of tokens × top-k assignments.
    """

    loss_sum: torch.Tensor
    count: int | float | torch.Tensor
    metrics: dict[str, Metric] = field(default_factory=dict)
    per_example: dict[str, torch.Tensor] = field(default_factory=dict)
    expert_assignments: torch.Tensor | None = None


@dataclass(kw_only=True, slots=True)
class ParameterGroup:
    """Parameters that an optimizer treats alike. `decay`: whether to decay weights; `lr_scale`: factor on the lr."""

    name: str
    params: list[torch.nn.Parameter]
    decay: bool
    lr_scale: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What an engine's step returns. `grad_norm`: L2 norm over all ranks before clipping; `skipped`: nothing was
    updated because a gradient was not finite."""

    grad_norm: float
    skipped: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What a logger is told at start. `facts`: (name, value) lines of the start summary, in order; `config`: the
    resolved configuration as plain data; `features`: (feature, what was decided) pairs; `sample`: a decoded example
    as (text, trained) segments; `smooth`: whether the stage's loss curve is drawn smoothed. A run that goes on from a
    checkpoint has done `first_step` steps already, and `history` holds the events of these, so that a logger can make
    its own record whole."""

    output_dir: Path
    stage: str
    total_steps: int
    first_step: int
    config: Mapping[str, Any]
    facts: Sequence[tuple[str, str]]
    features: Sequence[tuple[str, str]]
    sample: Sequence[tuple[str, bool]]
    smooth: bool = True
    history: Sequence[StepEvent] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEvent:
    """Metrics of training up to an optimizer step (`split="train"`) or of one evaluation after it (`split="eval"`).

    `step` counts from 1; `epoch` is fractional; `time` is when it was reported, in Unix seconds. `metrics` holds at
    least `loss`, and for train those that `bumblecore_core.toolkit.figures` describes, averaged over all ranks and the
    steps since the event before; then whatever the stage and the loss report.
    """

    step: int
    epoch: float
    metrics: Mapping[str, float]
    split: Literal["train", "eval"] = "train"
    time: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """How a run ended. `status` is `complete`, `interrupted` or `failed`; `final_dir` is where the model lies;
    `problem`: why it failed, as the console says it."""

    status: Literal["complete", "interrupted", "failed"]
    steps: int
    final_dir: Path | None
    seconds: float
    summary: Mapping[str, float]
    problem: str = ""
