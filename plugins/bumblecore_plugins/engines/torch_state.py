"""What the engine `torch` saves beside the weights, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bumblecore_core.toolkit.state_files import copied, read_state, write_state
from bumblecore_plugins.engines.precision import LossScale
from bumblecore_plugins.engines.schedule_state import PARAMS, check_owner, load_schedule, merged_groups, settings_of

if TYPE_CHECKING:
    from bumblecore_core.protocols import Scheduler

NAME = "engine"


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
        self._initial = settings_of(optimizer, scheduler)

    def writer(self, *, copy: bool) -> Callable[[Path], None]:
        """A function that writes the state into a directory; with `copy`, the state as it is now."""
        packed = self._optimizer.state_dict()
        tree = {
            "names": [name for name, _, _ in self._parameters],
            "optimizer": packed["state"],
            **settings_of(self._optimizer, self._scheduler),
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
        its new value. Raises `RunError` BC047 where the state is of other parameters, BC049 where another engine
        wrote it.
        """
        tree = read_state(directory, NAME) if (directory / f"{NAME}.json").is_file() else None
        check_owner(tree, [name for name, _, _ in self._parameters], "torch", directory)
        for name, master in self._masters().items():
            if name in tree["masters"]:
                master.copy_(tree["masters"][name])
        self._load_optimizer(tree)
        load_schedule(self._scheduler, self._optimizer, tree, self._initial)
        if self._loss_scale is not None and tree["loss_scale"] is not None:
            self._loss_scale.value = tree["loss_scale"]["value"]
            self._loss_scale.good_steps = tree["loss_scale"]["good_steps"]

    def _masters(self) -> dict[str, torch.nn.Parameter]:
        """What the optimizer steps instead of the weight itself, where that has memory of its own."""
        return {name: stepped for name, weight, stepped in self._parameters if weight.dtype != stepped.dtype}

    def _load_optimizer(self, tree: Mapping[str, Any]) -> None:
        groups, at = [], 0
        for own, settings in zip(self._optimizer.param_groups, merged_groups(tree, self._initial), strict=True):
            indices = list(range(at, at + len(own[PARAMS])))
            at += len(indices)
            groups.append({**settings, PARAMS: indices})
        self._optimizer.load_state_dict({"state": tree["optimizer"], "param_groups": groups})
        # load_state_dict casts to the parameter's dtype; state that was kept in a wider one gets its bits back
        stepped = [parameter for own in self._optimizer.param_groups for parameter in own[PARAMS]]
        for index, entries in tree["optimizer"].items():
            state = self._optimizer.state[stepped[index]]
            for key, saved in entries.items():
                if isinstance(saved, torch.Tensor) and state[key].dtype != saved.dtype:
                    state[key] = saved.to(state[key].device)
