"""Evaluates a learning-rate schedule over a run before it trains: a rate that cannot be computed at the last step would
cost the whole run."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from bumblecore_core.config.resolved import Selected
from bumblecore_core.errors import BumbleError, ConfigError, one
from bumblecore_core.records import SchedulerRecord
from bumblecore_core.registry.collect import one_line
from bumblecore_core.run.blame import BUILTIN, Plugin, breach

ALL_STEPS = 4_000
"""A run of at most as many steps is evaluated in each of them (some 20 ms)."""
EDGE, SPREAD = 500, 2_000
"""Of a longer one: this many steps at either end, and this many spread evenly between them."""
STEPPED = 50_000
"""Most steps of a schedule that can only be stepped (about a second)."""
CODE = "BC081"
WANTS = "A schedule gives a finite rate of 0 or more in each step, and after the last one"


def check_schedule(
    chosen: Selected[SchedulerRecord], optimizer: torch.optim.Optimizer, total_steps: int
) -> tuple[str, ...]:
    """Raises BC081 (`ConfigError` for a built-in schedule, whose options are at fault, `PluginError` for another) where
    a learning rate of a step of the run, or that after its last step, cannot be computed, is not finite or is negative.
    Returns a warning where every step's is 0.

    A second schedule is evaluated, built for a copy of `optimizer` with parameters that nobody steps: neither the run's
    optimizer nor its schedule changes. A schedule that only follows a metric has nothing to evaluate. One that cannot
    be evaluated at any step (no `LambdaLR`, no closed form) is stepped for up to `STEPPED` steps; beyond, the loop
    looks at each step's rate.
    """
    plugin, twin = Plugin.of(chosen.record), _twin(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a schedule that is stepped before its optimizer
        try:
            scheduler = chosen.record.build(options=chosen.options, optimizer=twin, total_steps=total_steps)
        except Exception:  # what is wrong beyond the twin is said when the run's own schedule is built
            return ()
        if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
            return ()
        highest = _highest_rate(plugin, scheduler, total_steps, chosen.options)
    return () if highest else (f"the learning rate is 0 in each of the {total_steps:,} steps: nothing is trained",)


def _highest_rate(plugin: Plugin, scheduler: LRScheduler, total_steps: int, options: Any) -> float:
    """The highest rate with which a step of the run is made."""
    step, highest = 0, 0.0
    try:
        for step, rates in _rates(scheduler, total_steps, options):
            for rate in rates:
                if not math.isfinite(rate) or rate < 0:
                    raise bad_rate(plugin, rate, step, total_steps)
                highest = max(highest, rate if step < total_steps else 0.0)
    except BumbleError:
        raise
    except Exception as error:
        raise _bad(plugin, f"raised {one_line(error)} for the learning rate", step, total_steps) from error
    return highest


def bad_rate(plugin: Plugin, rate: float, step: int, total_steps: int) -> BumbleError:
    """BC081 for a rate that is not finite or is negative; `step` counts from 0."""
    return _bad(plugin, f"gives a learning rate of {rate:g}", step, total_steps)


def steps_to_look_at(total_steps: int, options: Any) -> list[int]:
    """All steps from 0 to `total_steps` (the rate after the last one is computed too), or of a long run the first and
    last, an even spread, and those around each boundary that an option states: a number of steps, or a share of them,
    from the run's beginning or its end. Between such boundaries a schedule is smooth."""
    if total_steps <= ALL_STEPS:
        return list(range(total_steps + 1))
    steps = {*range(EDGE), *range(total_steps - EDGE, total_steps + 1)}
    steps.update(round(at * total_steps / SPREAD) for at in range(SPREAD + 1))
    for value in options.model_dump().values():
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            for edge in {value, value * total_steps} if value <= 1 else {value}:
                for at in (math.floor(edge), total_steps - math.floor(edge)):
                    steps.update(range(at - 2, at + 4))
    return sorted(step for step in steps if 0 <= step <= total_steps)


def _rates(scheduler: LRScheduler, total_steps: int, options: Any) -> Iterator[tuple[int, Sequence[float]]]:
    """(step, learning rates of the groups); each step is announced before its rates are computed, with none."""
    at_step = _by_step(scheduler)
    if at_step is not None:
        for step in steps_to_look_at(total_steps, options):
            yield step, ()
            yield step, at_step(step)
        return
    for step in range(min(total_steps, STEPPED) + 1):
        yield step, ()
        if step:
            scheduler.step()
        yield step, [float(group["lr"]) for group in scheduler.optimizer.param_groups]


def _by_step(scheduler: LRScheduler) -> Callable[[int], list[float]] | None:
    """What gives the rates of any step directly, where the schedule has that."""
    kind = type(scheduler)
    if kind.step is not LRScheduler.step:
        return None
    if isinstance(scheduler, LambdaLR) and kind.get_lr is LambdaLR.get_lr:
        bases = [float(base) for base in scheduler.base_lrs]
        functions = list(scheduler.lr_lambdas)
        factors = dict.fromkeys(map(id, functions), 0.0)  # groups usually share one function

        def by_lambdas(step: int) -> list[float]:
            for function in functions:
                factors[id(function)] = function(step)
            return [base * factors[id(function)] for base, function in zip(bases, functions, strict=True)]

        return by_lambdas
    closed_form: Callable[[], Sequence[Any]] | None = getattr(scheduler, "_get_closed_form_lr", None)
    if closed_form is None:
        return None

    def by_closed_form(step: int) -> list[float]:
        scheduler.last_epoch = step
        return [float(rate) for rate in closed_form()]

    return by_closed_form


def _twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer with the settings of another, group by group, and parameters of its own."""
    groups = [
        {**{key: copy.deepcopy(value) for key, value in group.items() if key != "params"}, "params": [_parameter()]}
        for group in optimizer.param_groups
    ]
    return torch.optim.Optimizer(groups, dict(optimizer.defaults))


def _parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(1))


def _bad(plugin: Plugin, fault: str, step: int, total_steps: int) -> BumbleError:
    where = f"in step {step + 1:,}" if step < total_steps else "after the last step"
    fault = f"{fault} {where} of {total_steps:,}"
    if plugin.package.startswith(BUILTIN):
        fix = "Change these options of the scheduler, or optimizer.lr"
        return one(ConfigError, CODE, f"the scheduler '{plugin.name}' {fault}", fix, field="scheduler")
    return breach(plugin, fault, WANTS, code=CODE)
