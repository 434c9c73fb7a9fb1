"""Each schedule's learning rate at every step against `transformers.get_scheduler` called directly."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers.optimization import get_scheduler

from bumblecore_core import ConfigError
from bumblecore_plugins.schedulers import bumble_schedulers

RECORDS = {record.name: record for record in bumble_schedulers()}
TOTAL = 37
LR = 3e-4

CASES = [
    ("linear", {}, 0, {}),
    ("linear", {"warmup_ratio": 0.1}, 4, {}),
    ("linear", {"warmup_steps": 7}, 7, {}),
    ("cosine", {"warmup_ratio": 0.03}, 2, {}),
    ("cosine", {"warmup_steps": 3, "num_cycles": 1.5}, 3, {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"warmup_steps": 3, "num_cycles": 3}, 3, {"num_cycles": 3}),
    ("cosine_with_restarts", {"warmup_steps": 3}, 3, {}),
    ("polynomial", {"warmup_steps": 2}, 2, {}),
    ("polynomial", {"warmup_steps": 2, "power": 2.0, "lr_end": 1e-5}, 2, {"power": 2.0, "lr_end": 1e-5}),
    ("constant", {}, None, {}),
    ("constant_with_warmup", {"warmup_ratio": 0.5}, 19, {}),
    ("constant_with_warmup", {"warmup_steps": TOTAL}, TOTAL, {}),
    ("inverse_sqrt", {}, 0, {}),
    ("inverse_sqrt", {"warmup_steps": 5}, 5, {}),
    ("inverse_sqrt", {"timescale": 9}, 0, {"timescale": 9}),
    ("cosine_with_min_lr", {"warmup_steps": 4}, 4, {"min_lr_rate": 0.1}),
    ("cosine_with_min_lr", {"min_lr": 1e-5}, 0, {"min_lr": 1e-5}),
    ("cosine_with_min_lr", {"min_lr": LR / 2}, 0, {"min_lr": LR / 2}),  # the rate of the second group
    ("cosine_with_min_lr", {"min_lr_rate": 0.3}, 0, {"min_lr_rate": 0.3}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.0}, 0, {"min_lr_rate": 0.0}),
    ("warmup_stable_decay", {"warmup_steps": 4}, 4, {"num_decay_steps": 4}),
    ("warmup_stable_decay", {"decay_ratio": 0.0}, 0, {"num_decay_steps": 0}),
    ("warmup_stable_decay", {"num_decay_steps": 0}, 0, {"num_decay_steps": 0}),
    ("warmup_stable_decay", {"warmup_steps": 30, "num_decay_steps": 7}, 30, {"num_decay_steps": 7}),  # nothing between
    ("warmup_stable_decay", {"decay_ratio": 0.5, "min_lr_ratio": 0.1}, 0, {"num_decay_steps": 19, "min_lr_ratio": 0.1}),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 11, "decay_type": "1-sqrt", "warmup_type": "cosine", "warmup_steps": 5},
        5,
        {"num_decay_steps": 11, "decay_type": "1-sqrt", "warmup_type": "cosine"},
    ),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 9, "num_cycles": 1.5},
        0,
        {"num_decay_steps": 9, "num_cycles": 1.5},
    ),
]


def optimizer_of_two_groups() -> torch.optim.Optimizer:
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(2))], "lr": LR},
        {"params": [torch.nn.Parameter(torch.ones(2))], "lr": LR / 2},
    ]
    return torch.optim.SGD(groups, lr=LR)


def rates(optimizer, scheduler, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(("name", "options", "warmup", "extra"), CASES, ids=lambda value: str(value))
def test_every_step_has_the_rate_of_get_scheduler(name, options, warmup, extra):
    record = RECORDS[name]
    ours = optimizer_of_two_groups()
    scheduler = record.build(options=record.options(**options), optimizer=ours, total_steps=TOTAL)
    theirs = optimizer_of_two_groups()
    reference = get_scheduler(name, theirs, warmup, TOTAL, dict(extra))
    assert rates(ours, scheduler, TOTAL + 1) == rates(theirs, reference, TOTAL + 1)


def test_a_polynomial_schedule_that_only_warms_up_has_the_rates_of_its_warm_up():
    ours, theirs = optimizer_of_two_groups(), optimizer_of_two_groups()
    options = RECORDS["polynomial"].options(warmup_ratio=1.0)
    scheduler = RECORDS["polynomial"].build(options=options, optimizer=ours, total_steps=TOTAL)
    reference = get_scheduler("constant_with_warmup", theirs, TOTAL, TOTAL)
    assert rates(ours, scheduler, TOTAL + 1) == rates(theirs, reference, TOTAL + 1)


@pytest.mark.parametrize(
    "options", [{"factor": 0.5, "patience": 1, "threshold": 1e-3, "cooldown": 1, "min_lr": 1e-5}, {}], ids=str
)
def test_plateau_follows_the_losses_as_get_scheduler_does(options):
    losses = [3.0, 2.0, 2.0, 2.1, 1.9, 1.9, 1.9, 1.9, 1.9, 1.0, *[1.0] * 30]
    record = RECORDS["reduce_on_plateau"]
    assert record.needs_metric
    ours, theirs = optimizer_of_two_groups(), optimizer_of_two_groups()
    scheduler = record.build(options=record.options(**options), optimizer=ours, total_steps=TOTAL)
    reference = get_scheduler("reduce_lr_on_plateau", theirs, scheduler_specific_kwargs=dict(options))
    seen = []
    for loss in losses:
        scheduler.step(loss)
        reference.step(loss)
        seen.append(ours.param_groups[0]["lr"])
        assert seen[-1] == theirs.param_groups[0]["lr"]
    assert seen[-1] < seen[0]


def test_there_are_the_ten_and_one_needs_a_metric():
    assert len(RECORDS) == 10
    assert [name for name, record in RECORDS.items() if record.needs_metric] == ["reduce_on_plateau"]
    for record in RECORDS.values():
        assert all(field.description for field in record.options.model_fields.values())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosine", {"warmup_ratio": 0.1, "warmup_steps": 3}, "warmup_ratio and warmup_steps"),
        ("cosine_with_min_lr", {"min_lr": 1e-6, "min_lr_rate": 0.1}, "min_lr and min_lr_rate"),
        ("warmup_stable_decay", {"decay_ratio": 0.1, "num_decay_steps": 3}, "decay_ratio and num_decay_steps"),
    ],
)
def test_two_options_for_one_thing_conflict(name, options, words):
    with pytest.raises(ValidationError, match=f"conflict: {words} are both set"):
        RECORDS[name].options(**options)


def test_a_schedule_takes_no_option_that_it_would_not_read():
    with pytest.raises(ValidationError, match="warmup_steps"):
        RECORDS["constant"].options(warmup_steps=3)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("warmup_stable_decay", {"warmup_steps": 30, "num_decay_steps": 20}, "30 warm-up and 20 decay steps"),
        ("polynomial", {"lr_end": 1.0}, "lr_end"),
    ],
)
def test_options_that_do_not_fit_the_run_are_a_config_error(name, options, words):
    record = RECORDS[name]
    with pytest.raises(ConfigError, match=words) as caught:
        record.build(options=record.options(**options), optimizer=optimizer_of_two_groups(), total_steps=TOTAL)
    assert caught.value.problems[0].code == "BC039"


def test_a_warmup_ratio_rounds_up():
    options = RECORDS["linear"].options(warmup_ratio=0.03)
    assert [options.resolved_warmup(total) for total in (1, 33, 34, 100)] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("linear", {"warmup_steps": TOTAL + 1}, "a warm-up of 38 steps is longer than the run of 37"),
        ("cosine_with_min_lr", {"min_lr": 2e-4}, "min_lr 0.0002 is above the learning rate, 0.00015"),
        ("reduce_on_plateau", {"min_lr": 2e-4}, "min_lr 0.0002 is above"),
        ("polynomial", {"lr_end": 2e-4}, "lr_end 0.0002 is above"),
    ],
)
def test_a_long_warm_up_and_a_lowest_rate_above_a_groups_are_refused(name, options, words):
    record = RECORDS[name]
    with pytest.raises(ConfigError, match=words) as caught:
        record.build(options=record.options(**options), optimizer=optimizer_of_two_groups(), total_steps=TOTAL)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("BC039", f"scheduler.{next(iter(options))}")


@pytest.mark.parametrize(
    ("name", "options"), [("polynomial", {"lr_end": 1e-5}), ("cosine_with_min_lr", {"min_lr": 1e-5})]
)
def test_the_last_rate_is_absolute_for_an_optimizer_whose_rates_are_set_by_group(name, options):
    """As in the example of `bumble_optimizers`: torch's default rate is not the run's."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": LR}]
    record, optimizer = RECORDS[name], torch.optim.SGD(groups)
    before = dict(optimizer.defaults)
    assert before["lr"] != LR
    scheduler = record.build(options=record.options(**options), optimizer=optimizer, total_steps=TOTAL)
    assert optimizer.defaults == before
    assert rates(optimizer, scheduler, TOTAL + 1)[-1] == [pytest.approx(1e-5)]
