"""Events between which several steps lie, and runs that are resumed between two events."""

import json
import math
import random

import pytest

from bumblecore_core.run.meter import Meter, Spent
from bumblecore_core.run.progress import Progress
from bumblecore_core.toolkit.figures import depends_on_the_machine

STEPS = 11


def steps_of(seed):
    chance = random.Random(seed)
    return [
        {
            "loss": math.nan if at == 4 else chance.random(),
            "learning_rate": chance.random(),
            "grad_norm": math.inf if at == 4 else chance.random(),
            "tokens": 10.0 * (at + 1),
            "skipped_steps": float(at >= 4),
            "accuracy": chance.random(),
            "state": float(at),
        }
        for at in range(STEPS)
    ]


LATEST = {"learning_rate", "tokens", "skipped_steps", "state"}


def add(meter, figures):
    spent = Spent(seconds=0.5, tokens=10, supervised=4, flops=1e9, waited=0.1)
    meter.add(figures, latest=LATEST, spent=spent, memory=2e9)


def test_means_leave_out_what_is_not_finite_and_totals_are_the_last():
    steps = steps_of(1)
    meter = Meter(Progress(), peak_flops=4e9)
    for figures in steps:
        add(meter, figures)
    found = meter.take()
    for name in ("loss", "grad_norm", "accuracy"):
        finite = [figures[name] for figures in steps if math.isfinite(figures[name])]
        assert found[name] == pytest.approx(sum(finite) / len(finite))
    assert {name: found[name] for name in LATEST} == {name: steps[-1][name] for name in LATEST}
    assert found["tokens_per_second"] == pytest.approx(20)
    assert found["supervised_tokens_per_second"] == pytest.approx(8)
    assert found["steps_per_second"] == pytest.approx(2)
    assert found["data_wait"] == pytest.approx(0.2)
    assert found["mfu"] == pytest.approx(0.5)
    assert found["peak_memory_gb"] == 2
    assert list(found)[-2:] == ["accuracy", "state"]  # the core's own come first


def test_an_event_holds_only_the_steps_since_the_one_before():
    meter = Meter(Progress())
    steps = steps_of(2)
    add(meter, steps[0])
    meter.take()
    add(meter, steps[1])
    found = meter.take()
    assert found["loss"] == steps[1]["loss"]
    assert found["tokens_per_second"] == pytest.approx(20)
    assert found["steps_per_second"] == pytest.approx(2)
    assert "mfu" not in found  # there was no peak to tell it against


def test_a_single_step_without_a_finite_loss_says_so():
    meter = Meter(Progress())
    add(meter, steps_of(3)[4])
    assert math.isnan(meter.take()["loss"])


@pytest.mark.parametrize("stop", range(STEPS))
def test_a_run_resumed_between_two_events_reports_the_same_bits(stop):
    steps = steps_of(4)
    whole = Meter(Progress())
    for figures in steps:
        add(whole, figures)
    progress = Progress()
    first = Meter(progress)
    for figures in steps[:stop]:
        add(first, figures)
    second = Meter(Progress.from_state(json.loads(json.dumps(progress.to_state()))))
    for figures in steps[stop:]:
        add(second, figures)
    left, right = whole.take(), second.take()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name] == right[name] or depends_on_the_machine(name), name
