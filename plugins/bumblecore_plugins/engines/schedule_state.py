"""What every engine does alike with parameters, optimizer settings and schedules: step, save and resume them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from bumblecore_core import ModelError, ParameterGroup, RunError, one
from bumblecore_core.toolkit.state_files import copied_once

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


def trained_parameters(groups: Sequence[ParameterGroup]) -> list[torch.nn.Parameter]:
    """All that is trained. Raises `ModelError` BC031 where that is nothing."""
    trained = [parameter for group in groups for parameter in group.params]
    if not trained:
        problem = "no parameter of the model is trainable"
        raise one(ModelError, "BC031", problem, "Check the adapter's target modules")
    return trained


def scale_and_clip(gradients: Sequence[torch.Tensor], factor: float, limit: float | None) -> float:
    """Multiplies gradients by `factor`, and to a norm of `limit` where theirs is larger; the norm before clipping. One
    that is not finite leaves the gradients as they were: nothing may be stepped."""
    norm = float(torch.nn.utils.get_total_norm(gradients)) * factor
    if math.isfinite(norm):
        if limit is not None and norm > limit:
            factor *= limit / (norm + 1e-6)
        if factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, factor)
    return norm


def whole_state(model: torch.nn.Module, *, wanted: Callable[[str], bool] | None, copy: bool) -> dict[str, torch.Tensor]:
    """The weights and saved buffers of a model that lies whole in this process; see `Engine.model_state`."""
    state = {name: one.detach() for name, one in model.state_dict().items() if wanted is None or wanted(name)}
    return copied_once(state) if copy else state


def settings_of(optimizer: torch.optim.Optimizer, scheduler: Scheduler) -> dict[str, Any]:
    """Every group's settings without its parameters (`groups`), and the schedule's state (`scheduler`), as copies."""
    groups = [{key: value for key, value in group.items() if key != PARAMS} for group in optimizer.param_groups]
    return {"groups": groups, "scheduler": copy.deepcopy(scheduler.state_dict())}


def merged_groups(tree: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each group's saved settings, save for those which start otherwise now than they started then.

    `tree`: the saved `settings_of`, and beside them under `initial` those with which that run had begun; `fresh`: those
    with which this one began."""
    return [_merged(*of) for of in zip(tree["groups"], tree["initial"]["groups"], fresh["groups"], strict=True)]


def load_schedule(
    scheduler: Scheduler, optimizer: torch.optim.Optimizer, tree: Mapping[str, Any], fresh: Mapping[str, Any]
) -> None:
    """Puts a schedule back (see `merged_groups`), and the learning rates of the step that comes next, by the schedule
    as it is configured now: where nothing was changed these are the saved ones, bit for bit."""
    scheduler.load_state_dict(_merged(tree["scheduler"], tree["initial"]["scheduler"], fresh["scheduler"]))
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


def check_owner(tree: Mapping[str, Any] | None, names: Sequence[str], engine: str, directory: Path) -> None:
    """Raises `RunError` BC049 for a checkpoint that `engine` did not write (`tree` is None), BC047 for one of other
    parameters than `names`."""
    if tree is None:
        problem = f"the checkpoint was saved by another engine than {engine}"
        fix = "Resume with that engine, or start a new run from the checkpoint's weights"
        raise one(RunError, "BC049", problem, fix, place=str(directory), field="engine")
    if tree["names"] != names:
        differing = sorted(set(tree["names"]) ^ set(names))[:5]
        problem = f"the optimizer's state is of other parameters: {', '.join(differing) or 'in another order'}"
        raise one(RunError, "BC047", problem, "Resume with the model that was trained", place=str(directory))


def _merged(saved: Mapping[str, Any], initial: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in fresh.items() if key not in initial or not _same(initial[key], value)}
    return {**saved, **changed}


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor) and torch.equal(left, right.cpu())
    return bool(left == right)
