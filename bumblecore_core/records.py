"""One frozen, keyword-only record per hook: what a plugin hands to the registry.

A record is declarative: `name`, a one-line `summary`, `options` (a pydantic model whose fields are all described and
which forbids extras) and a `build` (or `load`) callable that runs only when a run has chosen the record, so that a
plugin module can leave `import torch` to that function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from bumblecore_core.values import LossKind, ModelHead, SampleKind

if TYPE_CHECKING:
    import click
    import torch

    from bumblecore_core import protocols


class Options(BaseModel):
    """Base of every options model: unknown keys are errors, values are frozen once checked.

    A validator that finds options excluding each other raises `ValueError("conflict: a and b are both set")`: with the
    word conflict in its message the problem is BC039, otherwise BC038.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


@dataclass(frozen=True)
class ByContent:
    """Marks an option that names a file (`Annotated[str | None, ByContent()]`): a run that goes on compares what the
    file holds, and not where it lies."""


@dataclass(frozen=True)
class PerHost:
    """Marks an option that may differ between the hosts of a run, such as a local directory. Ranks compare all other
    options before they train (BC088)."""


class NoOptions(Options):
    """For a record without options."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all records share. `name`: lower-case letters, digits and underscores, the word a config uses."""

    kind: ClassVar[str]
    name: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class StageRecord(Record):
    """A training stage. `reads`: the samples it takes; `loss_kind` and `default_loss`: the losses that fit it;
    `model_from`: `config` starts from random weights of a config.json, `weights` from trained ones; `head`: what the
    model ends in, `language_model` or a `score` (one number a position, as a reward model has); `smooth`: whether its
    loss curve is drawn smoothed.

    `build(options=…, context=StageContext) -> Stage`
    """

    kind: ClassVar[str] = "stages"
    build: Callable[..., protocols.Stage]
    reads: SampleKind
    loss_kind: LossKind
    default_loss: str
    options: type[Options] = NoOptions
    model_from: Literal["config", "weights"] = "weights"
    head: ModelHead = "language_model"
    smooth: bool = True


@dataclass(frozen=True, kw_only=True)
class LossRecord(Record):
    """A loss over tokens, preference pairs, labelled completions or scores of pairs (`loss_kind`). `needs_reference`:
    whether a loss of pairs or of labelled completions compares with a reference model's log-probabilities.
    `build(options=…) -> TokenLoss | PreferenceLoss | FeedbackLoss | RewardLoss`"""

    kind: ClassVar[str] = "losses"
    build: Callable[..., protocols.Loss]
    loss_kind: LossKind
    options: type[Options] = NoOptions
    needs_reference: bool = True


@dataclass(frozen=True, kw_only=True)
class OptimizerRecord(Record):
    """An optimizer. `build(options=…, groups=[ParameterGroup, …]) -> torch.optim.Optimizer`"""

    kind: ClassVar[str] = "optimizers"
    build: Callable[..., torch.optim.Optimizer]
    options: type[Options] = NoOptions


@dataclass(frozen=True, kw_only=True)
class SchedulerRecord(Record):
    """A learning-rate schedule. `needs_metric`: it steps on evaluation losses (the run must then evaluate).

    `build(options=…, optimizer=…, total_steps=…) -> LRScheduler | ReduceLROnPlateau`
    """

    kind: ClassVar[str] = "schedulers"
    build: Callable[..., protocols.Scheduler]
    options: type[Options] = NoOptions
    needs_metric: bool = False


@dataclass(frozen=True, kw_only=True)
class DataFormatRecord(Record):
    """A row schema. `detect(row)` returns the kind of sample that a row of this schema gives, a tuple of kinds where it
    can give several, or None where it is not of this schema; it sees the parsed row and must not raise.

    `build(options=…) -> DataFormat`
    """

    kind: ClassVar[str] = "data_formats"
    build: Callable[..., protocols.DataFormat]
    detect: Callable[[Mapping[str, Any]], SampleKind | Sequence[SampleKind] | None]
    options: type[Options] = NoOptions


@dataclass(frozen=True, kw_only=True)
class AdapterRecord(Record):
    """A parameter-efficient adapter. `build(options=…) -> Adapter`"""

    kind: ClassVar[str] = "adapters"
    build: Callable[..., protocols.Adapter]
    options: type[Options] = NoOptions


@dataclass(frozen=True, kw_only=True)
class EngineRecord(Record):
    """An engine. `reshaping`: its options that divide the same work in another way, so that a resumed run may change
    them (numbers then agree up to rounding). `build(options=…, context=EngineContext) -> Engine`"""

    kind: ClassVar[str] = "engines"
    build: Callable[..., protocols.Engine]
    options: type[Options] = NoOptions
    reshaping: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoggerRecord(Record):
    """A logger. `build(options=…) -> Logger`"""

    kind: ClassVar[str] = "loggers"
    build: Callable[..., protocols.Logger]
    options: type[Options] = NoOptions


@dataclass(frozen=True, kw_only=True)
class AttentionRecord(Record):
    """An attention implementation for padding-free batches. `unsupported(device=…, dtype=…)` says in words why it
    cannot run there, or None where it can. `auto` tries the highest `priority` first.
    `load() -> AttentionFunctions`"""

    kind: ClassVar[str] = "attentions"
    load: Callable[[], protocols.AttentionFunctions]
    unsupported: Callable[..., str | None]
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class CommandRecord(Record):
    """A command under `bumble`. `load() -> click.Command`, called when the command or its help is asked for."""

    kind: ClassVar[str] = "commands"
    load: Callable[[], click.Command]


RECORDS: Sequence[type[Record]] = (
    StageRecord,
    LossRecord,
    OptimizerRecord,
    SchedulerRecord,
    DataFormatRecord,
    AdapterRecord,
    EngineRecord,
    LoggerRecord,
    AttentionRecord,
    CommandRecord,
)
