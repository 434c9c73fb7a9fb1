"""Optimizer settings and schedules as every engine steps, saves and resumes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

if TYPE_CHECKING:
    from bumblecore_core.protocols import Scheduler

PARAMS = "params"


def advance(scheduler: Scheduler, metric: float | None) -> None:
    """Steps a schedule: with None after each optimizer step; one that waits for a plateau steps only with a metric."""
    if isinstance(scheduler, ReduceLROnPlateau):
        if metric is not None:
            scheduler.step(metric)
    elif metric is None:
        scheduler.step()


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Current learning rate by parameter-group name."""
    groups = optimizer.param_groups
    return {group.get("name", f"group_{at}"): float(group["lr"]) for at, group in enumerate(groups)}


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Every group's settings, without its parameters."""
    return [{key: value for key, value in group.items() if key != PARAMS} for group in optimizer.param_groups]


def merged(saved: Mapping[str, Any], initial: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """The saved values, save for those which start otherwise now (`fresh`) than they started then (`initial`)."""
    changed = {key: value for key, value in fresh.items() if key not in initial or not _same(initial[key], value)}
    return {**saved, **changed}


def load_schedule(
    scheduler: Scheduler,
    optimizer: torch.optim.Optimizer,
    *,
    saved: Mapping[str, Any],
    initial: Mapping[str, Any],
    fresh: Mapping[str, Any],
) -> None:
    """Puts a schedule back, and the learning rates of the step that comes next, by the schedule as it is configured
    now: where nothing was changed these are the saved ones, bit for bit."""
    scheduler.load_state_dict(merged(saved, initial, fresh))
    if not isinstance(scheduler, LambdaLR):
        return
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler._last_lr = rates


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor) and torch.equal(left, right.cpu())
    return bool(left == right)
