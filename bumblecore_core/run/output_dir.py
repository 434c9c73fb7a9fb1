"""The run's output directory: writable, and of this run and no other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.config.yaml import dump
from bumblecore_core.errors import Problem, RunError, one
from bumblecore_core.run.checkpoint.folder import FINAL, Checkpoint, list_checkpoints
from bumblecore_core.run.checkpoint.history import HISTORY_LOG
from bumblecore_core.run.checkpoint.manifest import Torn, faults, read_manifest
from bumblecore_core.run.checkpoint.resume import NEVER, Start, candidate, check_start, lock_of, lock_problems
from bumblecore_core.run.files import write_text
from bumblecore_core.run.lock import (
    ALLOW,
    ALLOW_OR_REPLACE,
    config_drift,
    covered,
    lock_digest,
    read_lock,
    reshaping_options,
)
from bumblecore_core.run.named_files import require_named_files
from bumblecore_core.toolkit.disk import disk_code
from bumblecore_core.toolkit.history import HISTORY_FILE, INFO_FILE, LOCK_FILE, RUN_FILE
from bumblecore_core.toolkit.regular_files import irregular, require_regular

HEADER = "# The resolved configuration of this run.\n"
OURS = (RUN_FILE, LOCK_FILE, INFO_FILE, FINAL, "logs", HISTORY_FILE, HISTORY_LOG, "report.html")
"""What tells of a run and must not outlive it when another begins anew. Other loggers look after their own files."""
NO_CHECKPOINT = (
    "Put it back, choose another output_dir, or start over with --overwrite (there is no checkpoint to resume from; a "
    "new run can start from {final})"
)


def require_writable(directory: Path) -> None:
    """Creates the directory; raises `RunError` where it cannot be written (before anything expensive runs): BC042, or
    BC045 for a full disk."""
    probe = directory / f".probe-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        fix = "Choose another output_dir, or make this one writable"
        problem = f"cannot write here: {error.strerror}"
        raise one(
            RunError, disk_code(error) or "BC042", problem, fix, place=str(directory), field="output_dir"
        ) from error


def finished_run(resolved: ResolvedRun) -> Mapping[str, Any] | None:
    """What the finished run in the output directory was made from; None where there is none.

    Compares what can be compared before data, tokenizer and model are read (`config_drift`), with the finished run or
    the checkpoint to resume from, so that a changed setting is refused at once. Raises `RunError`: the differences,
    BC043 where the directory holds something that can be neither resumed nor replaced without being asked, BC069 for a
    run.yaml that no run wrote.
    """
    directory, resume = Path(resolved.config.output_dir), resolved.config.checkpoint.resume
    require_no_other_file(directory)
    require_named_files(resolved)
    start = candidate(directory, resume)
    saved = _lock_of_final(directory)
    if saved is not None:
        _compare_config(resolved, saved, start, finished=True, place=directory / FINAL)
        return saved
    checkpoints = [checkpoint.path.name for checkpoint in list_checkpoints(directory)]
    if checkpoints and resume == NEVER:
        problem = f"holds checkpoints ({', '.join(checkpoints)}), and checkpoint.resume is never"
        fix = "Resume with --resume auto, choose another output_dir, or start over with --overwrite"
        raise one(RunError, "BC043", problem, fix, place=str(directory), field="output_dir")
    if not checkpoints and os.path.lexists(directory / FINAL):
        problem = f"holds a {FINAL}/ that is damaged, or of which {LOCK_FILE} does not say what it was made from"
        fix = "Choose another output_dir, or start over with --overwrite"
        raise one(RunError, "BC043", problem, fix, place=str(directory), field="output_dir")
    if start is not None and (saved := lock_of(start)) is not None:
        _compare_config(resolved, saved, start, finished=False, place=start.path)
    return None


def is_complete(resolved: ResolvedRun, saved: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    """Whether the finished run, made from `saved`, is this one, made from `lock`; False where allowed changes make it
    resume. Libraries and plugins may have other versions by now: nothing is left for them to compute.

    Raises `RunError` with every other difference (see `lock_problems`), and BC043 where there is no checkpoint to
    resume from.
    """
    directory, section = Path(resolved.config.output_dir), resolved.config.checkpoint
    start = candidate(directory, section.resume)
    fix = _fix(directory, start.path if start else None)

    def differences(allowed: Sequence[str]) -> list[Problem]:
        reshaping = reshaping_options(resolved)
        found = lock_problems(saved, lock, allowed=allowed, reshaping=reshaping, place=directory / FINAL, fix=fix)
        return [problem for problem in found if not _by_another_version(problem, saved, lock)]

    if refused := differences(section.allow):
        raise RunError(refused)
    allowed_now = differences(())
    if allowed_now and start is None:
        raise _nothing_to_resume(resolved, [problem.field for problem in allowed_now])
    return not allowed_now


def check_start_here(resolved: ResolvedRun, start: Start, lock: Mapping[str, Any]) -> list[str]:
    """`check_start` for a run into its output directory."""
    allowed, reshaping = resolved.config.checkpoint.allow, reshaping_options(resolved)
    fix = _fix(Path(resolved.config.output_dir), start.path)
    return [*start.warnings, *check_start(start, lock, allowed=allowed, reshaping=reshaping, fix=fix)]


def require_no_other_file(directory: Path) -> None:
    """Raises `RunError` BC069 for a run.yaml that no run wrote, which this run would replace, BC061 for a FIFO."""
    require_regular(directory / RUN_FILE, RunError, field="output_dir")
    if os.path.lexists(directory / RUN_FILE) and not written_by_a_run(directory):
        problem = "a run.yaml lies here that no run wrote, and this run would replace it"
        fix = "Move that file, or choose another output_dir"
        raise one(RunError, "BC069", problem, fix, place=str(directory / RUN_FILE), field="output_dir")


def written_by_a_run(directory: Path) -> bool:
    """Whether run.yaml here is that of a run."""
    if irregular(directory / RUN_FILE):
        return False
    try:
        return (directory / RUN_FILE).read_text(encoding="utf-8").startswith(HEADER)
    except (OSError, UnicodeDecodeError):
        return False


def write_run_files(directory: Path, config: Mapping[str, Any], lock: Mapping[str, Any]) -> None:
    """Writes the resolved config, which `bumble run` accepts again, and what the run was made from."""
    write_text(directory / RUN_FILE, HEADER + dump(dict(config)))
    write_text(directory / LOCK_FILE, json.dumps(lock, indent=2) + "\n")


def _lock_of_final(directory: Path) -> Mapping[str, Any] | None:
    """What the model in `final/` was made from; None where it is not there, not whole, or of another run than
    run.lock.json describes (one that was resumed with changes and has not finished)."""
    lock = read_lock(directory / LOCK_FILE)
    try:
        named = read_manifest(directory / FINAL).facts.get("lock")
    except Torn:
        return None
    if lock is None or named != lock_digest(lock) or faults(directory / FINAL, hashes=False):
        return None
    return lock


def _compare_config(
    resolved: ResolvedRun, saved: Mapping[str, Any], start: Checkpoint | None, *, finished: bool, place: Path
) -> None:
    allowed, directory = resolved.config.checkpoint.allow, Path(resolved.config.output_dir)
    drifts = [drift for drift in config_drift(saved, resolved) if drift.name not in reshaping_options(resolved)]
    if refused := [drift for drift in drifts if not covered(drift.name, allowed)]:
        fix = _fix(directory, start.path if start else None)
        raise RunError([drift.problem(place, fix) for drift in refused])
    if finished and drifts and start is None:
        raise _nothing_to_resume(resolved, [drift.name for drift in drifts])


def _by_another_version(problem: Problem, saved: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    """Whether a difference is one of versions, or a default that another version of transformers gives a model."""
    library = saved["libraries"].get("transformers") != lock["libraries"].get("transformers")
    return problem.code == "BC070" or (library and problem.field.startswith("model.config."))


def _fix(directory: Path, start: Path | None) -> str:
    """What to do about a difference, by the checkpoint that there is to resume from."""
    if start is None:
        return NO_CHECKPOINT.replace("{final}", str(directory / FINAL))
    return ALLOW_OR_REPLACE if start.parent.resolve() == directory.resolve() else ALLOW


def _nothing_to_resume(resolved: ResolvedRun, changed: Sequence[str]) -> Exception:
    """A finished run is to go on with changes, but only its final model is there."""
    directory = Path(resolved.config.output_dir)
    key = "model.path" if resolved.adapter is None else "adapter.path"
    never = " (checkpoint.resume is never)" if resolved.config.checkpoint.resume == NEVER else ""
    problem = (
        f"the finished run cannot continue with another {', '.join(changed)}: there is no checkpoint to resume from"
        f"{never}, and {FINAL}/ holds weights without the optimizer's state"
    )
    fix = (
        f"Start a new run from these weights ({key}: {directory / FINAL}, and another output_dir), or start over with "
        f"--overwrite; checkpoint.save_steps keeps a checkpoint of the last step"
    )
    return one(RunError, "BC043", problem, fix, place=str(directory), field="output_dir")
