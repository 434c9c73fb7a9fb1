"""Whether two runs came to the same: their checkpoints file by file, and what they reported step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bumblecore_core.run.checkpoint.manifest import MANIFEST, describe
from bumblecore_core.run.checkpoint.writing import STATE
from bumblecore_core.run.progress import depends_on_the_machine

TIMED = {MANIFEST, f"{STATE}/history.json", f"{STATE}/history.safetensors"}
"""Files that hold timings, or hashes of such files. The history is compared by what it says."""
PLACED = {f"{STATE}/lock.json"}
"""Files that name the output directory."""


def checkpoint_differences(left: Path, right: Path) -> list[str]:
    """Files of two checkpoints that differ in any bit: weights, optimizer, schedule, random streams, progress with the
    digest of every row in order. Timings and paths are left out."""
    names = {file.relative_to(root).as_posix() for root in (left, right) for file in root.rglob("*") if file.is_file()}
    found = []
    for name in sorted(names - TIMED - PLACED):
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


def _events(path: Path) -> list[dict[str, Any]]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [{key: value for key, value in entry.items() if not depends_on_the_machine(key)} for entry in entries]
