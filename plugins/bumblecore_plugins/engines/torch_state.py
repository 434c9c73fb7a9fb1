"""What the engine `torch` saves beside the weights, and how it is put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from bumblecore_core import RunError, one
from bumblecore_core.toolkit.state_files import copied, read_state, write_state
from bumblecore_plugins.engines.precision import LossScale

if TYPE_CHECKING:
    from bumblecore_core.protocols import Scheduler

NAME = "engine"
PARAMS = "params"


class TorchState:
    """Optimizer, schedule, float32 masters and loss scale of one training.

    `parameters`: name, weight and what the optimizer steps for it, in the order of the optimizer's groups. Made right
    after optimizer and schedule, whose settings of then (`initial`) tell later what the configuration has changed.
    """

    def __init__(
        self,
        *,
        parameters: Sequence[tuple[str, torch.nn.Parameter, torch.nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler,
        loss_scale: LossScale | None,
    ) -> None:
        self._parameters, self._optimizer, self._scheduler = parameters, optimizer, scheduler
        self._loss_scale = loss_scale
        self._initial = {"groups": self._groups(), "scheduler": copy.deepcopy(scheduler.state_dict())}

    def writer(self, *, copy: bool) -> Callable[[Path], None]:
        """A function that writes the state into a directory; with `copy`, the state as it is now."""
        packed = self._optimizer.state_dict()
        tree = {
            "names": [name for name, _, _ in self._parameters],
            "optimizer": packed["state"],
            "groups": self._groups(),
            "scheduler": self._scheduler.state_dict(),
            "initial": self._initial,
            "masters": self._masters(),
            "loss_scale": None if self._loss_scale is None else asdict(self._loss_scale),
        }
        held = copied(tree) if copy else tree
        return lambda directory: write_state(directory, NAME, held)

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Puts back what `writer`'s function wrote into `directory`.

        A setting of the optimizer or schedule that the configuration has changed since (the resume allowed it) keeps
        its new value. Raises `RunError` BC047 where the state is of other parameters.
        """
        tree = read_state(directory, NAME)
        names = [name for name, _, _ in self._parameters]
        if tree["names"] != names:
            differing = sorted(set(tree["names"]) ^ set(names))[:5]
            problem = f"the optimizer's state is of other parameters: {', '.join(differing) or 'in another order'}"
            raise one(RunError, "BC047", problem, "Resume with the model that was trained", place=str(directory))
        for name, master in self._masters().items():
            if name in tree["masters"]:
                master.copy_(tree["masters"][name])
        self._load_optimizer(tree)
        merged = _merged(tree["scheduler"], tree["initial"]["scheduler"], self._initial["scheduler"])
        self._scheduler.load_state_dict(merged)
        _set_rates(self._scheduler, self._optimizer)
        if self._loss_scale is not None and tree["loss_scale"] is not None:
            self._loss_scale.value = tree["loss_scale"]["value"]
            self._loss_scale.good_steps = tree["loss_scale"]["good_steps"]

    def _masters(self) -> dict[str, torch.nn.Parameter]:
        """What the optimizer steps instead of the weight itself, where that has memory of its own."""
        return {name: stepped for name, weight, stepped in self._parameters if weight.dtype != stepped.dtype}

    def _groups(self) -> list[dict[str, Any]]:
        return [{key: value for key, value in g.items() if key != PARAMS} for g in self._optimizer.param_groups]

    def _load_optimizer(self, tree: Mapping[str, Any]) -> None:
        groups, at = [], 0
        for number, own in enumerate(self._optimizer.param_groups):
            indices = list(range(at, at + len(own[PARAMS])))
            at += len(indices)
            settings = _merged(
                tree["groups"][number], tree["initial"]["groups"][number], self._initial["groups"][number]
            )
            groups.append({**settings, PARAMS: indices})
        self._optimizer.load_state_dict({"state": tree["optimizer"], "param_groups": groups})
        # load_state_dict casts to the parameter's dtype; state that was kept in a wider one gets its bits back
        stepped = [parameter for own in self._optimizer.param_groups for parameter in own[PARAMS]]
        for index, entries in tree["optimizer"].items():
            state = self._optimizer.state[stepped[index]]
            for key, saved in entries.items():
                if isinstance(saved, torch.Tensor) and state[key].dtype != saved.dtype:
                    state[key] = saved.to(state[key].device)


def _merged(saved: Mapping[str, Any], initial: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """The saved values, save for those which start otherwise now than they started then."""
    changed = {key: value for key, value in fresh.items() if key not in initial or not _same(initial[key], value)}
    return {**saved, **changed}


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor) and torch.equal(left, right.cpu())
    return bool(left == right)


def _set_rates(scheduler: Scheduler, optimizer: torch.optim.Optimizer) -> None:
    """Learning rates of the step that comes next, by the schedule as it is configured now: where nothing was changed
    these are the saved ones, bit for bit."""
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
