"""What the engine `deepspeed` saves beside the weights: each rank its own shard, as plain tensors.

DeepSpeed's own checkpoints are pickles, laid out for one ZeRO stage and one number of ranks. Here each rank writes the
flat tensors that its optimizer steps, and which part of which weight lies where in them. Any number of ranks at any
stage finds its parts in such files by arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bumblecore_core import RunError, one
from bumblecore_core.toolkit.state_files import read_state, write_state
from bumblecore_plugins.engines.schedule_state import check_owner, load_schedule, merged_groups, settings_of
from bumblecore_plugins.engines.zero_layout import Fragment

if TYPE_CHECKING:
    from bumblecore_core.protocols import Scheduler

NAME, TENSORS, MASTER = "zero", "zero-shards.safetensors", "master"


class ZeroState:
    """Optimizer, schedule, float32 masters and loss scale of one rank.

    Made right after optimizer and schedule, whose settings of then (`initial`) tell later what the configuration has
    changed. `loss_scaler`: the object whose numbers are DeepSpeed's dynamic loss scale, None without one.
    """

    def __init__(
        self,
        *,
        fragments: Sequence[Fragment],
        names: Sequence[str],
        stage: int,
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler,
        loss_scaler: Any,
    ) -> None:
        self._fragments, self._names, self._stage = fragments, sorted(names), stage
        self._optimizer, self._scheduler, self._loss_scaler = optimizer, scheduler, loss_scaler
        self._initial = settings_of(optimizer, scheduler)

    def writer(self) -> Callable[[Path], None]:
        """A function that writes this rank's state, as it is when the function is called, into a directory."""

        def write(directory: Path) -> None:
            owners = _owners(self._fragments)
            tensors: dict[str, torch.Tensor] = {}
            plain: list[dict[str, Any]] = []
            for at, owner in enumerate(owners):
                tensors[f"{at}.{MASTER}"] = owner.detach().reshape(-1).contiguous()
                plain.append({})
                for key, value in self._optimizer.state.get(owner, {}).items():
                    if isinstance(value, torch.Tensor) and value.dim() and value.numel() == owner.numel():
                        tensors[f"{at}.{key}"] = value.detach().reshape(-1).contiguous()
                    else:
                        plain[at][key] = value
            places = {id(owner): at for at, owner in enumerate(owners)}
            tree = {
                "stage": self._stage,
                "names": self._names,
                "fragments": [
                    [one.name, one.start, one.length, places[id(one.owner)], one.offset] for one in self._fragments
                ],
                "plain": plain,
                **settings_of(self._optimizer, self._scheduler),
                "initial": self._initial,
                "loss_scale": _numbers(self._loss_scaler),
            }
            write_state(directory, NAME, tree)
            save_file(tensors, directory / TENSORS)

        return write

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Puts back what any number of ranks wrote into `directory`/rank-0, …, at any stage.

        A setting of the optimizer or schedule that the configuration has changed since (the resume allowed it) keeps
        its new value. Raises `RunError`: BC047 where the state is of other parameters, BC049 where the optimizer keeps
        state that cannot be cut (it is not one number per weight) and the stage or number of ranks is another.
        """
        shards = [_Shard(path) for path in sorted(directory.glob("rank-*")) if (path / f"{NAME}.json").is_file()]
        first = shards[0].tree if shards else None
        check_owner(first, self._names, "deepspeed", directory)
        for fragment in self._fragments:
            self._load_fragment(fragment, shards, first["stage"], directory)
        for group, settings in zip(self._optimizer.param_groups, merged_groups(first, self._initial), strict=True):
            group.update(settings)
        load_schedule(self._scheduler, self._optimizer, first, self._initial)
        if self._loss_scaler is not None:
            vars(self._loss_scaler).update(first["loss_scale"])

    def _load_fragment(self, fragment: Fragment, shards: Sequence[_Shard], stage: int, directory: Path) -> None:
        filled, state = 0, self._optimizer.state[fragment.owner]
        for shard, (start, length, owner, offset) in _overlapping(shards, fragment):
            begin, end = max(start, fragment.start), min(start + length, fragment.start + fragment.length)
            here, there = begin - fragment.start, offset + begin - start
            for key in shard.keys(owner):
                saved = shard.read(f"{owner}.{key}", there, there + end - begin)
                if key == MASTER:
                    target = fragment.owner
                else:
                    target = state.setdefault(key, torch.zeros_like(fragment.owner, dtype=saved.dtype))
                fragment.of(target)[here : here + end - begin] = saved.to(target.device)
            for key, value in shard.tree["plain"][owner].items():
                if isinstance(value, torch.Tensor) and value.dim() and not shard.alike(fragment, owner, offset):
                    problem = f"the optimizer's state '{key}' cannot be cut for ZeRO stage {self._stage} on these ranks"
                    fix = (
                        f"Resume with ZeRO stage {stage} and the number of processes that the checkpoint was saved with"
                    )
                    raise one(RunError, "BC049", problem, fix, place=str(directory), field="engine.zero_stage")
                state[key] = value.clone() if isinstance(value, torch.Tensor) else value
            filled += end - begin
        if filled != fragment.length:
            problem = (
                f"{fragment.length - filled} of {fragment.length} numbers of the weight {fragment.name} are missing"
            )
            raise one(RunError, "BC046", problem, "Resume from another checkpoint", place=str(directory))


class _Shard:
    """What one rank wrote."""

    def __init__(self, directory: Path) -> None:
        self.tree = read_state(directory, NAME)
        self._file = safe_open(directory / TENSORS, framework="pt")
        self._names = list(self._file.keys())
        self.parts: dict[str, list[tuple[int, int, int, int]]] = {}
        for name, start, length, owner, offset in self.tree["fragments"]:
            self.parts.setdefault(name, []).append((start, length, owner, offset))

    def keys(self, owner: int) -> list[str]:
        return [name.partition(".")[2] for name in self._names if name.startswith(f"{owner}.")]

    def read(self, name: str, begin: int, end: int) -> torch.Tensor:
        values: torch.Tensor = self._file.get_slice(name)[begin:end]
        return values

    def alike(self, fragment: Fragment, owner: int, offset: int) -> bool:
        """Whether the fragment's owner is the saved one, whole."""
        size = self._file.get_slice(f"{owner}.{MASTER}").get_shape()[0]
        return offset == fragment.offset and bool(size == fragment.owner.numel())


def _overlapping(shards: Sequence[_Shard], fragment: Fragment) -> Iterator[tuple[_Shard, tuple[int, int, int, int]]]:
    """The saved parts that hold something of `fragment`, each element once (ranks of stage 0 hold the same)."""
    end = fragment.start
    found = [(shard, part) for shard in shards for part in shard.parts.get(fragment.name, [])]
    for shard, part in sorted(found, key=lambda pair: pair[1][0]):
        start, length = part[0], part[1]
        if start + length > end and start < fragment.start + fragment.length:
            yield shard, part
            end = start + length


def _owners(fragments: Sequence[Fragment]) -> list[torch.Tensor]:
    return list({id(one.owner): one.owner for one in fragments}.values())


def _numbers(scaler: Any) -> dict[str, Any]:
    if scaler is None:
        return {}
    return {key: value for key, value in vars(scaler).items() if isinstance(value, bool | int | float)}
