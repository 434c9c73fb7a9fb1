"""Whether two runs came to the same: their checkpoints bit by bit, and what they reported step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from bumblecore_core.run.checkpoint.manifest import MANIFEST, describe
from bumblecore_core.run.checkpoint.writing import STATE
from bumblecore_core.toolkit.figures import depends_on_the_machine

TIMED = {MANIFEST, f"{STATE}/history.json"}
"""Files that hold timings, or hashes of such files. The history is compared by what it says."""
PLACED = {f"{STATE}/lock.json"}
"""Files that name the output directory."""


def checkpoint_differences(left: Path, right: Path) -> list[str]:
    """What differs between two checkpoints in any bit: weights, optimizer, schedule, random streams, progress with the
    digest of every row in order. Timings and paths are left out.

    Weights are compared tensor by tensor: which shard holds which is transformers' choice, and another for a model that
    was made from a config.json than for one that was loaded.
    """
    names = {file.relative_to(root).as_posix() for root in (left, right) for file in root.rglob("*") if file.is_file()}
    weights = {name for name in names if "/" not in name and ".safetensors" in name}
    found = _weight_differences(left, right)
    for name in sorted(names - weights - TIMED - PLACED):
        if not (left / name).is_file() or not (right / name).is_file():
            found.append(f"{name} is in one of them only")
        elif describe(left / name) != describe(right / name):
            found.append(f"{name} differs")
    return found


def history_differences(left: Path, right: Path) -> list[str]:
    """Events of two `metrics.json` that differ in a step, an epoch or a figure that is no timing."""
    first, second = _events(left), _events(right)
    found = [f"{len(first)} entries against {len(second)}"] if len(first) != len(second) else []
    for one, other in zip(first, second, strict=False):
        if one != other:
            keys = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
            found.append(f"step {one['step']} ({one['split']}): {', '.join(keys)} differ")
    return found


def _weight_differences(left: Path, right: Path) -> list[str]:
    first, second = (
        {name: file for file in sorted(root.glob("*.safetensors")) for name in _names(file)} for root in (left, right)
    )
    found = [f"the weight {name} is in one of them only" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        one, other = _tensor(first[name], name), _tensor(second[name], name)
        if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(_bits(one), _bits(other)):
            found.append(f"the weight {name} differs")
    return found


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes: NaN equals NaN, and 0 does not equal -0."""
    return tensor.reshape(-1).view(torch.uint8)


def _events(path: Path) -> list[dict[str, Any]]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [
        {key: value for key, value in entry.items() if key != "time" and not depends_on_the_machine(key)}
        for entry in entries
    ]
