"""A schedule is evaluated over all steps before training, without touching the run's optimizer and schedule."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler

from bumblecore_core import ConfigError, Options, PluginError, SchedulerRecord
from bumblecore_core.config.resolved import Selected
from bumblecore_core.run.schedule_check import ALL_STEPS, EDGE, check_schedule, steps_to_look_at
from bumblecore_plugins.schedulers import bumble_schedulers

RECORDS = {record.name: record for record in bumble_schedulers()}
LONG = 10**8


def optimizer():
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate, "name": f"at {rate}"} for rate in (1e-3, 2e-3)
    ]
    return torch.optim.AdamW(groups, lr=1e-3)


def foreign(build):
    """A plugin's schedule, chosen."""
    return Selected(SchedulerRecord(name="odd", summary="x", build=build), Options())


def by_lambda(function):
    def build(*, options, optimizer, total_steps):
        return lr_scheduler.LambdaLR(optimizer, partial(function, total=total_steps))

    return foreign(build)


def by_class(make):
    return foreign(lambda *, options, optimizer, total_steps: make(optimizer, total_steps))


class Raising(lr_scheduler.LRScheduler):
    def get_lr(self):
        if self.last_epoch == 3:
            raise KeyError("gone")
        return [group["lr"] for group in self.optimizer.param_groups]


class Falling(lr_scheduler.LRScheduler):
    """Negative after the last step alone, and with torch's closed form."""

    def __init__(self, optimizer, total):
        self.total = total
        super().__init__(optimizer)

    def get_lr(self):
        return self._get_closed_form_lr()

    def _get_closed_form_lr(self):
        return [base if self.last_epoch < self.total else -base for base in self.base_lrs]


class OwnRates(lr_scheduler.LambdaLR):
    """Rates of its own in place of those of the functions."""

    def get_lr(self):
        return [-base if self.last_epoch == 3 else base for base in self.base_lrs]


class OwnSteps(lr_scheduler.LambdaLR):
    """Rates that depend on the steps before."""

    def step(self, epoch=None):
        super().step(epoch)
        if self.last_epoch == 3:
            self.optimizer.param_groups[0]["lr"] = -1.0


@pytest.mark.parametrize(
    ("chosen", "total", "words"),
    [
        (by_lambda(lambda step, total: 1 / (total - step)), 4, "raised ZeroDivisionError: division by zero for the"),
        (by_lambda(lambda step, total: 1 / (total - step)), LONG, "after the last step of 100,000,000"),
        (by_lambda(lambda step, total: math.nan if step == 2 else 1.0), 4, "a learning rate of nan in step 3 of 4"),
        (by_lambda(lambda step, total: math.inf if step == 1 else 1.0), 4, "a learning rate of inf in step 2 of 4"),
        (by_lambda(lambda step, total: 1.0 - step), 4, "a learning rate of -0.001 in step 3 of 4"),
        (by_lambda(lambda step, total: -1.0 if step > total // 2 else 1.0), LONG, "a learning rate of -0.001"),
        (by_lambda(lambda step, total: -1.0 if 0.4 < step / total < 0.6 else 1.0), LONG, "-0.001 in step 40,"),
        (by_lambda(lambda step, total: "x" if step else 1.0), 4, "raised TypeError"),
        (by_class(lambda o, n: Raising(o)), 9, "raised KeyError: 'gone' for the learning rate in step 4 of 9"),
        (by_class(lambda o, n: Raising(o)), 3, "after the last step of 3"),
        (by_class(lambda o, n: OwnRates(o, lambda step: 1.0)), 9, "a learning rate of -0.001 in step 4 of 9"),
        (by_class(lambda o, n: OwnSteps(o, lambda step: 1.0)), 9, "a learning rate of -1 in step 4 of 9"),
        (by_class(lambda o, n: lr_scheduler.LambdaLR(o, [lambda step: 1.0, lambda step: -1.0])), 9, "-0.002 in step 1"),
        (by_class(lambda o, n: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=n - 1)), 9, "after the last step of 9"),
        (by_class(lambda o, n: Falling(o, n)), LONG, "-0.001 after the last step"),
    ],
)
def test_a_rate_that_cannot_be_computed_or_is_none_names_the_plugin_and_the_step(chosen, total, words):
    with pytest.raises(PluginError) as caught:
        check_schedule(chosen, optimizer(), total)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("BC081", "schedulers.odd")
    assert f"the scheduler 'odd' (module {__name__})" in problem.problem
    assert words in problem.problem


def test_schedules_of_torch_pass_at_any_length():
    for make in (
        lambda o, n: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=n),
        lr_scheduler.CosineAnnealingLR,
        lambda o, n: lr_scheduler.PolynomialLR(o, total_iters=n),
        lambda o, n: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=1), lr_scheduler.ExponentialLR(o, 0.9)], [1]
        ),
        lambda o, n: lr_scheduler.ReduceLROnPlateau(o),
    ):
        for total in (1, 2, 50):
            make(optimizer(), total)  # a schedule that cannot be built is not checked
            assert check_schedule(by_class(make), optimizer(), total) == ()


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "reduce_on_plateau"])
def test_built_in_schedules_pass_at_any_length_and_with_any_warm_up(name):
    record = RECORDS[name]
    shares = (0.0, 0.03, 0.5, 1.0) if "warmup_ratio" in record.options.model_fields else (None,)
    for total in (1, 2, 7, 101, LONG):
        for share in shares:
            given = {} if share is None else {"warmup_ratio": share}
            if name == "warmup_stable_decay":
                given["decay_ratio"] = 0.0 if share == 1.0 or total < 3 else 0.2
            chosen = Selected(record, record.options(**given))
            record.build(options=chosen.options, optimizer=optimizer(), total_steps=total)
            warned = check_schedule(chosen, optimizer(), total)
            assert bool(warned) == (total == 1 and bool(share)), (total, share)


def test_a_run_without_any_rate_is_warned_of():
    (warning,) = check_schedule(by_lambda(lambda step, total: step // total), optimizer(), 5)
    assert "0 in each of the 5 steps" in warning


def test_options_that_overflow_are_the_configs_fault():
    chosen = Selected(RECORDS["cosine"], RECORDS["cosine"].options(num_cycles=1e308))
    with pytest.raises(ConfigError, match=r"BC081 scheduler: the scheduler 'cosine' raised ValueError"):
        check_schedule(chosen, optimizer(), 10)


def test_a_long_run_is_looked_at_around_its_edges_and_the_boundaries_that_options_state():
    options = RECORDS["warmup_stable_decay"].options(warmup_steps=123_456, decay_ratio=0.123)
    steps = set(steps_to_look_at(LONG, options))
    assert {0, 1, EDGE - 1, 123_455, 123_456, 123_457, LONG - EDGE, LONG - 1, LONG} <= steps
    assert {LONG - 12_300_000 + at for at in (-1, 0, 1)} <= steps
    assert len(steps) < ALL_STEPS
    assert steps_to_look_at(30, options) == list(range(31))


def test_the_runs_own_optimizer_and_schedule_stay_as_they_were():
    own, calls = optimizer(), []

    def function(step, total):
        calls.append(step)
        return 1.0

    chosen = by_lambda(function)
    real = chosen.record.build(options=chosen.options, optimizer=own, total_steps=9)
    before, count = {**real.state_dict()}, len(calls)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in own.param_groups]
    check_schedule(chosen, own, 9)
    assert real.state_dict() == before
    assert groups == [{key: value for key, value in group.items() if key != "params"} for group in own.param_groups]
    assert len(calls) > count
    assert not own.state


def test_a_learning_rate_that_is_a_tensor_is_not_that_of_the_copy():
    """torch's schedules write into such a rate, a warm-up a rate of 0."""
    own = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.5))
    assert check_schedule(Selected(RECORDS["linear"], RECORDS["linear"].options(warmup_steps=2)), own, 9) == ()
    assert own.param_groups[0]["lr"].item() == 0.5


def test_a_build_that_the_copy_does_not_suit_is_left_to_the_run():
    def build(*, options, optimizer, total_steps):
        assert isinstance(optimizer, torch.optim.AdamW)
        return lr_scheduler.LambdaLR(optimizer, lambda step: -1.0)

    assert check_schedule(foreign(build), optimizer(), 5) == ()
