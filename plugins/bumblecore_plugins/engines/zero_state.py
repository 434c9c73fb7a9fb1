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
from bumblecore_core.toolkit.state_files import copied, read_state, write_state
from bumblecore_plugins.engines.schedule_state import check_owner, load_schedule, merged_groups, settings_of
from bumblecore_plugins.engines.zero_layout import Fragment, by_owner
from bumblecore_plugins.engines.zero_nvme import resident, swapped

if TYPE_CHECKING:
    from bumblecore_core.protocols import Scheduler

NAME, TENSORS, MASTER = "zero", "zero-shards", "master"


class ZeroState:
    """Optimizer, schedule, float32 masters and loss scale of one rank.

    Made right after optimizer and schedule, whose settings of then (`initial`) tell later what the configuration has
    changed. `zero`: what `deepspeed.initialize` gave as the optimizer. `loss_scaler`: the object whose numbers are
    DeepSpeed's dynamic loss scale, None without one.
    """

    def __init__(
        self,
        *,
        fragments: Sequence[Fragment],
        names: Sequence[str],
        stage: int,
        zero: Any,
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler,
        loss_scaler: Any,
    ) -> None:
        self._owners, self._names, self._stage, self._zero = by_owner(fragments), sorted(names), stage, zero
        self._optimizer, self._scheduler, self._loss_scaler = optimizer, scheduler, loss_scaler
        self._initial = settings_of(optimizer, scheduler)

    def writer(self, *, copy: bool) -> Callable[[Path], None]:
        """A function that writes this rank's state into a directory; with `copy`, the state as it is now."""
        tensors: dict[str, torch.Tensor] = {}
        on_disk: list[tuple[int, torch.Tensor]] = []
        plain: list[dict[str, Any]] = []
        for at, (owner, _) in enumerate(self._owners):
            plain.append({})
            if swapped(self._zero, owner):
                on_disk.append((at, owner))
            else:
                tensors |= self._flat(at, owner, plain[at])
        tree = {
            "stage": self._stage,
            "names": self._names,
            "fragments": [
                [one.name, one.start, one.length, at, one.offset]
                for at, (_, parts) in enumerate(self._owners)
                for one in parts
            ],
            "plain": plain,
            **settings_of(self._optimizer, self._scheduler),
            "initial": self._initial,
            "loss_scale": _numbers(self._loss_scaler),
        }
        if copy:
            tensors, tree = copied(tensors), copied(tree)

        def write(directory: Path) -> None:
            save_file(tensors, directory / f"{TENSORS}.safetensors")
            for at, owner in on_disk:  # a file for each: no more than one of them has to lie in memory
                with resident(self._zero, owner, write=False):
                    save_file(self._flat(at, owner, plain[at]), directory / f"{TENSORS}-{at}.safetensors")
            write_state(directory, NAME, tree)

        return write

    def _flat(self, at: int, owner: torch.Tensor, plain: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The values of one tensor that the optimizer steps, and those of its state; what is not one number per weight
        is put into `plain`."""
        found = {f"{at}.{MASTER}": owner.detach().reshape(-1).contiguous()}
        for key, value in self._optimizer.state.get(owner, {}).items():
            if isinstance(value, torch.Tensor) and value.dim() and value.numel() == owner.numel():
                found[f"{at}.{key}"] = value.detach().reshape(-1).contiguous()
            else:
                plain[key] = value
        return found

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
        for owner, parts in self._owners:
            with resident(self._zero, owner, write=True):
                for fragment in parts:
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
        opened = [safe_open(file, framework="pt") for file in sorted(directory.glob(f"{TENSORS}*.safetensors"))]
        self._files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        self.parts: dict[str, list[tuple[int, int, int, int]]] = {}
        for name, start, length, owner, offset in self.tree["fragments"]:
            self.parts.setdefault(name, []).append((start, length, owner, offset))

    def keys(self, owner: int) -> list[str]:
        return [name.partition(".")[2] for name in self._files if name.startswith(f"{owner}.")]

    def read(self, name: str, begin: int, end: int) -> torch.Tensor:
        values: torch.Tensor = self._files[name].get_slice(name)[begin:end]
        return values

    def alike(self, fragment: Fragment, owner: int, offset: int) -> bool:
        """Whether the fragment's owner is the saved one, whole."""
        name = f"{owner}.{MASTER}"
        size = self._files[name].get_slice(name).get_shape()[0]
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


def _numbers(scaler: Any) -> dict[str, Any]:
    if scaler is None:
        return {}
    return {key: value for key, value in vars(scaler).items() if isinstance(value, bool | int | float)}
