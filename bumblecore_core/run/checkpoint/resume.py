"""Where a run goes on from: the checkpoint to take up, whether it is the same run's, and putting its state back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bumblecore_core.errors import BumbleError, Problem, RunError, one
from bumblecore_core.protocols import Engine
from bumblecore_core.run.agree import on_all_ranks
from bumblecore_core.run.checkpoint.folder import Checkpoint, checkpoint_path, inspect, list_checkpoints, problems_of
from bumblecore_core.run.checkpoint.streams import put_streams, seed_streams
from bumblecore_core.run.checkpoint.writing import STATE, rank_directory
from bumblecore_core.run.lock import ALLOW, batch_size, drift, weights_comparable
from bumblecore_core.run.progress import Progress
from bumblecore_core.toolkit.state_files import read_state

FIELD = "checkpoint.resume"
AUTO, NEVER = "auto", "never"


@dataclass(frozen=True, kw_only=True)
class Start:
    """A checkpoint to go on from: `lock` is what its run was made from; `warnings`: what to show with the facts."""

    path: Path
    step: int
    lock: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def agreed_start(engine: Engine, output_dir: Path, resume: str, *, overwrite: bool = False) -> Start | None:
    """What rank 0's `choose_start` gives, on every rank: one process reads every byte of a checkpoint, not each. A
    collective."""
    start = on_all_ranks(
        engine,
        lambda: choose_start(output_dir, resume, overwrite=overwrite) if engine.rank == 0 else None,
        "verifying the checkpoint to resume from",
    )
    step = int(engine.sum_over_ranks([start.step + 1.0 if start else 0.0])[0]) - 1
    if engine.rank == 0 or step < 0:
        return start
    path = checkpoint_path(output_dir, step) if resume == AUTO else _named(Path(os.path.expanduser(resume))).path
    return Start(path=path, step=step, lock=read_state(path / STATE, "lock"))


def candidate(output_dir: Path, resume: str) -> Checkpoint | None:
    """The checkpoint that `choose_start` will look at first, its sizes compared and its hashes not; None: none, or an
    unusable one."""
    if resume == NEVER:
        return None
    path = Path(os.path.expanduser(resume))
    found = list_checkpoints(output_dir) if resume == AUTO else [_named(path)] if path.is_dir() else []
    whole = [checkpoint for checkpoint in found if checkpoint.manifest and (checkpoint.path / STATE).is_dir()]
    return whole[-1] if whole else None


def lock_of(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """What the run of a checkpoint was made from; None where that cannot be read."""
    try:
        lock: Mapping[str, Any] = read_state(checkpoint.path / STATE, "lock")
    except (OSError, ValueError):
        return None
    return lock


def choose_start(output_dir: Path, resume: str, *, overwrite: bool = False) -> Start | None:
    """The checkpoint that `resume` (auto, never, or a path) names, its hashes verified; None: from the beginning.
    `overwrite`: what is in `output_dir` will be replaced and plays no part.

    Raises `RunError`: BC046 for a torn or corrupt checkpoint (with auto only where no valid one is left), BC051 for one
    of a newer version, BC043 where `output_dir` holds newer checkpoints than the one named.
    """
    if resume == NEVER or (resume == AUTO and overwrite):
        return None
    if resume == AUTO:
        return _newest_valid(output_dir)
    path = Path(os.path.expanduser(resume))
    if not os.path.isdir(path):  # unlike Path.is_dir, false for a name that is too long
        problem = f"there is no checkpoint at {path}"
        raise one(RunError, "BC046", problem, _known(path.parent), field=FIELD)
    start = _verified(_named(path))
    newer = [other.path.name for other in list_checkpoints(output_dir) if other.manifest and other.step > start.step]
    if newer and not overwrite:
        problem = f"holds newer checkpoints than {path.name}: {', '.join(newer)}; two histories would mix"
        fix = "Move these away, or choose another output_dir"
        raise one(RunError, "BC043", problem, fix, place=str(output_dir), field=FIELD)
    return start


def lock_problems(
    saved: Mapping[str, Any],
    lock: Mapping[str, Any],
    *,
    allowed: Sequence[str],
    reshaping: Sequence[str],
    place: Path,
    fix: str = ALLOW,
) -> list[Problem]:
    """Everything that differs between two locks and changes the numbers, each with the old and the new value: BC043
    config, BC047 model, BC048 batch, BC050 data and tokenizer, BC070 plugins and libraries. `reshaping`: names of
    options that only divide the same work in another way."""
    found = drift(saved, lock, allowed=allowed)
    problems = [one.problem(place, fix) for one in found if one.name not in reshaping]
    if batch_size(saved) != batch_size(lock) and "batch" not in allowed:
        product = f"Make the product {batch_size(saved)} again"
        problem = f"a step had {_words(_shape(saved))} when this was saved and has {_words(_shape(lock))} now"
        fix = fix.replace("{name}", "batch").replace("Put it back", product)
        problems.append(Problem(code="BC048", place=str(place), field="batch", problem=problem, fix=fix))
    return problems


def check_start(
    start: Start,
    lock: Mapping[str, Any],
    *,
    allowed: Sequence[str],
    reshaping: Sequence[str] = (),
    fix: str = ALLOW,
) -> list[str]:
    """Refuses what would change the numbers: raises `RunError` with `lock_problems`. Returns what to tell about the
    rest."""
    saved = start.lock
    problems = lock_problems(saved, lock, allowed=allowed, reshaping=reshaping, place=start.path, fix=fix)
    if problems:
        raise RunError(problems)
    warnings = [
        f"{one.name} was {one.saved} and is {one.now} now: the numbers agree up to rounding, not bit for bit"
        for one in drift(saved, lock, allowed=allowed)
        if one.name in reshaping
    ]
    if not weights_comparable(saved, lock) and (saved["config"].get("adapter") or lock.get("reference")):
        warnings.append("an earlier version saved this checkpoint: base weights are not compared")
    then, now = _shape(saved), _shape(lock)
    if then == now:
        return warnings
    told = f"a step was {_words(then)} and is {_words(now)} now: "
    same = batch_size(saved) == batch_size(lock)
    end = "the numbers agree up to rounding, not bit for bit" if same else "the numbers change, as allowed"
    return [*warnings, told + end]


def restore(start: Start, engine: Engine, *, seed: int) -> Progress:
    """Puts optimizer, schedule and random streams back, and returns how far the run had come. The model must hold the
    checkpoint's weights already."""
    try:
        engine.load_training_state(directory=start.path / STATE)
        progress = load_progress(start.path)
        if int(start.lock["world_size"]) == engine.world_size:
            put_streams(read_state(rank_directory(start.path, engine.rank), "streams"), engine.device)
        else:  # the streams were those of other ranks: new ones, unlike those at the run's beginning
            seed_streams(seed, engine.rank, start.step)
    except BumbleError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        problem = f"its training state cannot be taken up: {type(error).__name__}: {error}"
        fix = "Resume with the plugins and options that wrote it, or from another checkpoint"
        raise one(RunError, "BC046", problem, fix, place=str(start.path), field=FIELD) from error
    return progress


def load_progress(checkpoint: Path) -> Progress:
    """How far the run had come that wrote this checkpoint."""
    state = checkpoint / STATE
    return Progress.from_state(read_state(state, "progress"))


def _newest_valid(output_dir: Path) -> Start | None:
    torn: list[Problem] = []
    for checkpoint in reversed(list_checkpoints(output_dir)):
        try:
            start = _verified(checkpoint)
        except RunError as error:
            if error.problems[0].code == "BC051":
                raise
            torn += error.problems
            continue
        skipped = tuple(f"{problem.code} {problem.place}: {problem.problem}; not used" for problem in torn)
        return Start(path=start.path, step=start.step, lock=start.lock, warnings=skipped)
    if torn:
        raise RunError(torn)
    return None


def _verified(checkpoint: Checkpoint) -> Start:
    """Raises `RunError` BC046 or BC051 with everything that is wrong with the checkpoint."""
    fix = "Resume from another checkpoint, or start anew with --overwrite"
    problems = problems_of(checkpoint.path, fix=fix, field=FIELD)
    fault = checkpoint.fault if checkpoint.manifest is None else ""
    if not fault and not (checkpoint.path / STATE).is_dir():
        fault = "it holds a model without its training state"
    if fault and not problems:
        problems = [Problem(code="BC046", place=str(checkpoint.path), field=FIELD, problem=fault, fix=fix)]
    if problems:
        raise RunError(problems)
    lock = lock_of(checkpoint)
    if lock is None:
        problem = f"{STATE}/lock.json cannot be read"
        raise one(RunError, "BC046", problem, "Resume from another checkpoint", place=str(checkpoint.path), field=FIELD)
    return Start(path=checkpoint.path, step=checkpoint.step, lock=lock)


def _named(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest one of a run's output directory there."""
    inside = list_checkpoints(path)
    return inside[-1] if inside else inspect(path)


def _known(directory: Path) -> str:
    names = [checkpoint.path.name for checkpoint in list_checkpoints(directory) if checkpoint.manifest]
    return f"There are: {', '.join(names)}" if names else "Name a directory that `bumble checkpoint list` shows"


def _shape(lock: Mapping[str, Any]) -> tuple[int, int, int]:
    train = lock["config"]["train"]
    return int(train["micro_batch_size"]), int(train["gradient_accumulation_steps"]), int(lock["world_size"])


def _words(shape: tuple[int, int, int]) -> str:
    micro, accumulated, processes = shape
    return f"{micro} × {accumulated} accumulated × {processes} processes = {micro * accumulated * processes}"
