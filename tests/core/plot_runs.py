"""Histories to draw."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bumblecore_core import StepEvent
from bumblecore_core.toolkit.history import RunRecord


def train(step, loss, *, epoch=None, **metrics):
    metrics = {"loss": loss, "learning_rate": 1e-3 / step, "tokens": 100.0 * step, "steps_per_second": 4.0, **metrics}
    return StepEvent(step=step, epoch=step / 50 if epoch is None else epoch, metrics=metrics)


def evaluation(step, loss, **metrics):
    return StepEvent(step=step, epoch=step / 50, metrics={"loss": loss, **metrics}, split="eval")


def noisy(count, seed=0):
    """Losses that fall, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.1, count)
    return [float(2 + 3 * math.exp(-at / 40) + noise[at]) for at in range(count)]


def a_run(count, seed=0, evaluate_every=20):
    events = []
    for step, loss in enumerate(noisy(count, seed), 1):
        events.append(train(step, loss))
        if step % evaluate_every == 0:
            events.append(evaluation(step, 2 + abs(step - 60) / 100))
    return events


def record(name, events):
    return RunRecord(directory=Path("/runs") / name, config={}, info={}, lock={}, events=events)
