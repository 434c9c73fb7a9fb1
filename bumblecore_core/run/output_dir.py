"""The run's output directory: writable, and of this run and no other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bumblecore_core.config.yaml import dump
from bumblecore_core.errors import Problem, RunError, one
from bumblecore_core.run.checkpoint.folder import FINAL, list_checkpoints
from bumblecore_core.run.checkpoint.manifest import Torn, faults, read_manifest
from bumblecore_core.run.checkpoint.resume import NEVER
from bumblecore_core.run.files import recover, write_text
from bumblecore_core.run.lock import HARMLESS, RESHAPING, config_differences, numbers_hash
from bumblecore_core.toolkit.history import HISTORY_FILE, INFO_FILE, LOCK_FILE, RUN_FILE
from bumblecore_core.toolkit.regular_files import irregular, require_regular

HEADER = "# The resolved configuration of this run.\n"
OURS = (RUN_FILE, LOCK_FILE, INFO_FILE, FINAL, "logs", HISTORY_FILE, "report.html")
"""What tells of a run and must not outlive it when another begins anew. Other loggers look after their own files."""


def require_writable(directory: Path) -> None:
    """Creates the directory; raises `RunError` BC042 where it cannot be written (before anything expensive runs)."""
    probe = directory / f".probe-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        fix = "Choose another output_dir, or make this one writable"
        problem = f"cannot write here: {error.strerror}"
        raise one(RunError, "BC042", problem, fix, place=str(directory), field="output_dir") from error


def is_complete(directory: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run of this very config has ended here, and what it saved is there.

    Raises `RunError`: BC043 where another run wrote here, or one that can neither be gone on with nor be replaced
    unasked; BC069 where a run.yaml lies here that no run wrote.
    """
    found = _read(directory / RUN_FILE)
    if found is None:
        return False
    if not _written_by_a_run(directory):
        problem = "a run.yaml lies here that no run wrote, and this run would replace it"
        fix = "Move that file, or choose another output_dir"
        raise one(RunError, "BC069", problem, fix, place=str(directory / RUN_FILE), field="output_dir")
    section = config["checkpoint"]
    if differing := config_differences(found, config, ignored=(*HARMLESS, *RESHAPING, *section["allow"])):
        names = [drift.name for drift in differing]
        problem = "holds another run; differing: " + ", ".join(names[:8])
        allow = " ".join(f"--allow {name}" for name in names[:3])
        fix = f"Choose another output_dir, go on with the changed config by {allow}, or start anew with --overwrite"
        raise _another(directory, problem, fix)
    if _final_hash(directory) == numbers_hash(config):
        return True
    checkpoints = [checkpoint.path.name for checkpoint in list_checkpoints(directory)]
    if checkpoints and section["resume"] == NEVER:
        problem = f"holds checkpoints ({', '.join(checkpoints)}), and checkpoint.resume is never"
        raise _another(directory, problem, "Resume with --resume auto, or delete them and start anew with --overwrite")
    if not checkpoints and (directory / FINAL / "config.json").is_file():
        problem = "holds a finished run of a changed config, and no checkpoint to go on from"
        raise _another(directory, problem, "Choose another output_dir, or start anew with --overwrite")
    return False


def _another(directory: Path, problem: str, fix: str) -> RunError:
    return RunError([Problem(code="BC043", place=str(directory), field="output_dir", problem=problem, fix=fix)])


def _final_hash(directory: Path) -> str | None:
    """Of which config the model in `final/` is; None where it is not there whole."""
    try:
        found = read_manifest(directory / FINAL).facts.get("config")
    except Torn:
        return None
    return str(found) if not faults(directory / FINAL, hashes=False) else None


def write_run_files(directory: Path, config: Mapping[str, Any], lock: Mapping[str, Any]) -> None:
    """Writes the resolved config, which `bumble run` accepts again, and what the run was made from."""
    write_text(directory / RUN_FILE, HEADER + dump(dict(config)))
    write_text(directory / LOCK_FILE, json.dumps(lock, indent=2) + "\n")


def clear(directory: Path, *, config: Path | None = None) -> None:
    """Deletes what a run of ours wrote here, and nothing else; nor `config`, the file that the new run is made from."""
    if not _written_by_a_run(directory):
        return
    recover(directory)
    for name in [*OURS, *(checkpoint.path.name for checkpoint in list_checkpoints(directory))]:
        path = directory / name
        if config is not None and path.exists() and config.exists() and path.samefile(config):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _written_by_a_run(directory: Path) -> bool:
    if irregular(directory / RUN_FILE):
        return False
    try:
        return (directory / RUN_FILE).read_text(encoding="utf-8").startswith(HEADER)
    except (OSError, UnicodeDecodeError):
        return False


def _read(path: Path) -> dict[str, Any] | None:
    require_regular(path, RunError, field="output_dir")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem, fix = (
            "holds a run whose run.yaml cannot be read",
            "Choose another output_dir, or delete this directory",
        )
        raise one(RunError, "BC043", problem, fix, place=str(path), field="output_dir") from error
    return loaded if isinstance(loaded, dict) else {}
