"""The run's output directory: writable, and of this run and no other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bumblecore_core.config.yaml import dump
from bumblecore_core.errors import Problem, RunError, one
from bumblecore_core.run.saving import write_text

RUN_FILE = "run.yaml"
LOCK_FILE = "run.lock.json"
FINAL = "final"
OURS = (RUN_FILE, LOCK_FILE, FINAL, "logs", "metrics.json")


def require_writable(directory: Path) -> None:
    """Creates the directory; raises `RunError` BC042 where it cannot be written (before anything expensive runs)."""
    probe = directory / f".probe-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        fix = "Choose another output_dir, or make this one writable"
        raise one(RunError, "BC042", f"cannot write here: {error.strerror}", fix, place=str(directory)) from error


def is_complete(directory: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run of this very config has ended here. Raises `RunError` BC043 where another run wrote here."""
    found = _read(directory / RUN_FILE)
    if found is None:
        return False
    differing = sorted(set(_differing(found, dict(config))))
    if differing:
        problem = "holds another run; differing: " + ", ".join(differing[:8])
        fix = "Choose another output_dir, or pass --overwrite to delete that run and start anew"
        raise RunError([Problem(code="BC043", place=str(directory), field="output_dir", problem=problem, fix=fix)])
    return (directory / FINAL / "config.json").is_file()


def write_run_files(directory: Path, config: Mapping[str, Any], lock: Mapping[str, Any]) -> None:
    """Writes the resolved config, which `bumble run` accepts again, and what the run was made from."""
    text = "# The resolved configuration of this run.\n" + dump(dict(config))
    write_text(directory / RUN_FILE, text)
    write_text(directory / LOCK_FILE, json.dumps(lock, indent=2) + "\n")


def clear(directory: Path) -> None:
    """Deletes what a run of ours wrote here, and nothing else."""
    if not (directory / RUN_FILE).is_file():
        return
    for name in OURS:
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, yaml.YAMLError) as error:
        fix = "Choose another output_dir, or delete this directory"
        raise one(RunError, "BC043", "holds a run whose run.yaml cannot be read", fix, place=str(path)) from error
    return loaded if isinstance(loaded, dict) else {}


def _differing(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in found.keys() | wanted.keys():
            yield from _differing(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (one_item, other) in enumerate(zip(found, wanted, strict=True)):
            yield from _differing(one_item, other, f"{path}.{index}")
    elif found != wanted:
        yield path
