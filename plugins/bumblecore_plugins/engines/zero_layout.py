"""Which part of which weight each of DeepSpeed's optimizer tensors holds, at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Elements `start` to `start + length` of the flattened weight `name`, which this rank's optimizer steps as
    elements `offset` to `offset + length` of `owner` (flattened). `group`: index of the optimizer's parameter group."""

    name: str
    start: int
    length: int
    owner: torch.Tensor
    offset: int
    group: int

    @property
    def values(self) -> torch.Tensor:
        """(length,) view of the owner's own memory."""
        return self.of(self.owner)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """(length,) view of this fragment in a tensor that has the owner's layout, such as a moment of Adam's."""
        return tensor.detach().reshape(-1)[self.offset : self.offset + self.length]


def by_owner(found: Sequence[Fragment]) -> list[tuple[torch.Tensor, list[Fragment]]]:
    """Each tensor that the optimizer steps, with what lies in it."""
    owners: dict[int, tuple[torch.Tensor, list[Fragment]]] = {}
    for one in found:
        owners.setdefault(id(one.owner), (one.owner, []))[1].append(one)
    return list(owners.values())


def fragments(optimizer: Any, names: Mapping[int, str], *, stage: int, rank: int) -> list[Fragment]:
    """All that this rank's optimizer steps. `optimizer`: what `deepspeed.initialize` gave; `names` by the weights' id.

    Stage 0: whole weights, the same on every rank. Stages 1 and 2: each group's weights end to end, cut into one piece
    per rank, so that a piece begins and ends within a weight. Stage 3: a part of each weight.
    """
    if stage == 3:
        return list(_of_stage_3(optimizer, names, rank))
    if stage > 0:
        return list(_of_stages_1_and_2(optimizer, names))
    return list(_of_stage_0(optimizer, names))


def _of_stage_0(optimizer: Any, names: Mapping[int, str]) -> Iterator[Fragment]:
    groups = optimizer.param_groups
    for at, group in enumerate(groups):
        weights = optimizer.fp16_groups[at] if hasattr(optimizer, "fp16_groups") else group["params"]
        for weight, owner in zip(weights, group["params"], strict=True):
            name = names[id(weight)]
            yield Fragment(name=name, start=0, length=owner.numel(), owner=owner, offset=0, group=at)


def _of_stages_1_and_2(optimizer: Any, names: Mapping[int, str]) -> Iterator[Fragment]:
    # float32 accumulation at stage 1 in bf16 is another class of DeepSpeed's, with names of its own
    bf16 = hasattr(optimizer, "bf16_groups")
    weights = optimizer.bf16_groups if bf16 else optimizer.bit16_groups
    owners = optimizer.fp32_groups_flat_partition if bf16 else optimizer.single_partition_of_fp32_groups
    for at, (group, owner) in enumerate(zip(weights, owners, strict=True)):
        for weight in group:
            mapping = weight._hp_mapping
            if mapping is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Fragment(
                    name=names[id(weight)],
                    start=here.start,
                    length=here.numel,
                    owner=owner,
                    offset=there.start,
                    group=at,
                )


def _of_stage_3(optimizer: Any, names: Mapping[int, str], rank: int) -> Iterator[Fragment]:
    for at, (weights, owner) in enumerate(
        zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    ):
        offset = 0
        for weight in weights:
            size = weight.partition_numel()
            length = max(0, min(size, weight.ds_numel - rank * size))  # the last rank's part ends in padding
            if length:
                yield Fragment(
                    name=names[id(weight)],
                    start=rank * size,
                    length=length,
                    owner=owner,
                    offset=offset,
                    group=optimizer.sub_group_to_group_id[at],
                )
            offset += size
