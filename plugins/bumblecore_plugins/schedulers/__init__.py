"""Built-in learning-rate schedules: those of `transformers.get_scheduler`, under its names and computed by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bumblecore_core import ConfigError, NoOptions, Options, SchedulerRecord, hookimpl, one
from bumblecore_plugins.schedulers.options import (
    CosineOptions,
    InverseSqrtOptions,
    MinLrOptions,
    PlateauOptions,
    PolynomialOptions,
    RestartOptions,
    StableDecayOptions,
    WarmupOptions,
)

if TYPE_CHECKING:
    import torch

    from bumblecore_core.protocols import Scheduler

_PLATEAU = "reduce_on_plateau"
Arguments = Callable[[Any, int], dict[str, Any]]
"""(options, total steps) → the schedule's own keyword arguments."""


def _builder(name: str, arguments: Arguments) -> Callable[..., Scheduler]:
    theirs = "reduce_lr_on_plateau" if name == _PLATEAU else name

    def build(*, options: Options, optimizer: torch.optim.Optimizer, total_steps: int) -> Scheduler:
        from bumblecore_plugins.schedulers.library import load_get_scheduler

        warmup = options.resolved_warmup(total_steps) if isinstance(options, WarmupOptions) else None
        if warmup is not None and warmup > total_steps:
            problem = f"{name}: a warm-up of {warmup} steps is longer than the run of {total_steps}"
            fix = "Set scheduler.warmup_ratio, or fewer scheduler.warmup_steps"
            raise one(ConfigError, "BC039", problem, fix, field="scheduler.warmup_steps")
        _check_lowest(name, options, optimizer)
        # A schedule that only warms up has no decay to divide by.
        schedule = "constant_with_warmup" if name == "polynomial" and warmup == total_steps else theirs
        try:
            with _default_rate(optimizer):
                return load_get_scheduler()(
                    schedule,
                    optimizer,
                    num_warmup_steps=warmup,
                    num_training_steps=total_steps,
                    scheduler_specific_kwargs={} if schedule != theirs else arguments(options, total_steps),
                )
        except (ArithmeticError, ValueError) as error:
            fix = "Change these options of the scheduler, or optimizer.lr"
            raise one(ConfigError, "BC039", f"{name}: {error}", fix, field="scheduler") from error

    return build


def _check_lowest(name: str, options: Options, optimizer: torch.optim.Optimizer) -> None:
    """Raises `ConfigError` BC039 for a lowest or last rate above that of a group, which would rise to it, or never
    fall."""
    for option in ("min_lr", "lr_end"):
        lowest = getattr(options, option, None)
        for group in optimizer.param_groups:
            if lowest is not None and lowest > float(group["lr"]):
                rate = f"the learning rate, {float(group['lr']):g} (group {group.get('name', '?')})"
                problem = f"{name}: {option} {lowest:g} is above {rate}"
                fix = f"Lower scheduler.{option}, or raise optimizer.lr"
                raise one(ConfigError, "BC039", problem, fix, field=f"scheduler.{option}")


@contextmanager
def _default_rate(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Has `optimizer.defaults` hold the rate of the first group, which is the run's own: transformers reads the peak
    there, where an optimizer whose rates are set group by group has torch's own default."""
    before = optimizer.defaults
    optimizer.defaults = {**before, "lr": optimizer.param_groups[0]["lr"]}
    try:
        yield
    finally:
        optimizer.defaults = before


def _nothing(options: Options, total_steps: int) -> dict[str, Any]:
    return {}


def _own(options: Options, total_steps: int) -> dict[str, Any]:
    """Every option but those of the warm-up, under its own name."""
    return options.model_dump(exclude={"warmup_ratio", "warmup_steps"})


def _min_lr(options: MinLrOptions, total_steps: int) -> dict[str, Any]:
    values = _own(options, total_steps)
    if options.min_lr is None and options.min_lr_rate is None:
        values["min_lr_rate"] = 0.1
    return values


def _stable_decay(options: StableDecayOptions, total_steps: int) -> dict[str, Any]:
    warmup, decay = options.resolved_warmup(total_steps), options.resolved_decay(total_steps)
    if warmup + decay > total_steps:
        raise ValueError(f"{warmup} warm-up and {decay} decay steps do not fit into a run of {total_steps}")
    values = options.model_dump(include={"warmup_type", "decay_type", "min_lr_ratio", "num_cycles"})
    return {**values, "num_decay_steps": decay}


_SCHEDULES: tuple[tuple[str, str, type[Options], Arguments], ...] = (
    ("linear", "Rises, then falls linearly to 0.", WarmupOptions, _nothing),
    ("cosine", "Rises, then falls along a cosine.", CosineOptions, _own),
    ("cosine_with_restarts", "Rises, then falls along a cosine several times.", RestartOptions, _own),
    ("polynomial", "Rises, then falls to lr_end along a power.", PolynomialOptions, _own),
    ("constant", "Stays as it is.", NoOptions, _nothing),
    ("constant_with_warmup", "Rises, then stays.", WarmupOptions, _nothing),
    ("inverse_sqrt", "Rises, then falls with the root of the step.", InverseSqrtOptions, _own),
    (_PLATEAU, "Falls when the evaluation loss stops improving.", PlateauOptions, _own),
    ("cosine_with_min_lr", "Rises, then falls along a cosine to a minimum above 0.", MinLrOptions, _min_lr),
    ("warmup_stable_decay", "Rises, stays, falls at the end.", StableDecayOptions, _stable_decay),
)


@hookimpl
def bumble_schedulers() -> list[SchedulerRecord]:
    """The ten schedules of `transformers.get_scheduler`."""
    return [
        SchedulerRecord(
            name=name,
            summary=summary,
            build=_builder(name, arguments),
            options=options,
            needs_metric=name == _PLATEAU,
        )
        for name, summary, options, arguments in _SCHEDULES
    ]
