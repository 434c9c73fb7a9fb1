"""Which run of a tracking service a training run goes on in: kept in a small file in the output directory."""

from __future__ import annotations

from pathlib import Path

from bumblecore_core import RunInfo


def kept_id(path: Path, info: RunInfo) -> str | None:
    """The id that `path` holds; None where there is none. Where the run begins anew the file is deleted, so that it
    does not go on in an earlier run's."""
    if info.first_step == 0 and not info.history:
        path.unlink(missing_ok=True)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def keep_id(path: Path, run_id: str) -> None:
    """Writes the id, so that the file holds all of it or is not there."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(run_id + "\n", encoding="utf-8")
    beside.replace(path)
