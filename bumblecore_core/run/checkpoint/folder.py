"""The checkpoints of an output directory: which there are, which is the best, and which may go."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from bumblecore_core.errors import Problem
from bumblecore_core.run.checkpoint.manifest import Manifest, Newer, Torn, file_faults, read_manifest
from bumblecore_core.run.files import remove_directory

FINAL = "final"
NAME = re.compile(r"checkpoint-(0|[1-9]\d{0,17})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory `checkpoint-N`. `manifest` is None where it is torn, and `fault` then says why."""

    path: Path
    step: int
    manifest: Manifest | None
    fault: str = ""

    @property
    def evaluation_loss(self) -> float | None:
        """The loss on the evaluation data at that step, where it was measured and is a number."""
        found = self.manifest.facts.get("evaluation_loss") if self.manifest else None
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return output_dir / f"checkpoint-{step}"


def list_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """The checkpoints of a run by step, torn ones included; sizes are compared, hashes are not. Symbolic links, files
    and directories of other names are none of ours."""
    found = []
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        match = NAME.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found.append(inspect(path, int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def inspect(path: Path, step: int | None = None) -> Checkpoint:
    """A checkpoint directory of any name, by its manifest and its files' sizes. `step`: what its name says."""
    try:
        manifest = read_manifest(path)
        number = manifest.step
    except Torn as torn:
        return Checkpoint(path=path, step=step or 0, manifest=None, fault=str(torn))
    except (KeyError, TypeError, ValueError):
        return Checkpoint(path=path, step=step or 0, manifest=None, fault="its manifest names no step")
    wrong = file_faults(path, manifest, hashes=False)
    if step is not None and number != step:
        wrong.append(f"its manifest says step {number}")
    if wrong:
        return Checkpoint(path=path, step=number if step is None else step, manifest=None, fault=wrong[0])
    return Checkpoint(path=path, step=number, manifest=manifest)


def problems_of(path: Path, *, fix: str, field: str = "") -> list[Problem]:
    """What is wrong with a saved directory, every byte compared: BC051 where a newer version wrote it, BC046."""
    try:
        found = file_faults(path, read_manifest(path), hashes=True)
    except Newer as newer:
        problem, fix = f"a newer version wrote this: {newer}", "Update BumbleCore to use it"
        return [Problem(code="BC051", place=str(path), field=field, problem=problem, fix=fix)]
    except Torn as torn:
        found = [str(torn)]
    return [Problem(code="BC046", place=str(path), field=field, problem=line, fix=fix) for line in found]


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest evaluation loss, the earliest of equals; None where none was evaluated."""
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.evaluation_loss is not None]
    return min(evaluated, key=lambda checkpoint: (checkpoint.evaluation_loss, checkpoint.step), default=None)


def outdated(checkpoints: Sequence[Checkpoint], *, limit: int | None, pinned: Collection[Path]) -> list[Checkpoint]:
    """Which checkpoints a limit of `limit` lets go: all valid ones but the newest `limit`, the best and the `pinned`.

    A torn directory neither counts nor goes: it may be evidence, and it is not known to be ours.
    """
    valid = sorted((one for one in checkpoints if one.manifest is not None), key=lambda one: one.step)
    if limit is None:
        return []
    winner = best(valid)
    kept = {one.path for one in valid[-limit:]} | ({winner.path} if winner else set())
    held = {os.path.realpath(path) for path in pinned}  # however the user wrote them
    return [one for one in valid if one.path not in kept and os.path.realpath(one.path) not in held]


def rotate(output_dir: Path, *, limit: int | None, pinned: Collection[Path]) -> list[Path]:
    """Deletes the outdated checkpoints of a run; returns which."""
    gone = outdated(list_checkpoints(output_dir), limit=limit, pinned=pinned)
    for checkpoint in gone:
        remove_directory(checkpoint.path)
    return [checkpoint.path for checkpoint in gone]
