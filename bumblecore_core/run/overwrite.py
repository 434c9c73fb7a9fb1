"""`--overwrite`: what an earlier run left is moved aside when the new run can start, and deleted once it has trained.

Until then it can be put back, by this process or, after a crash, by the next run here. `.replaced.partial` exists while
files move in either direction and holds a part of them; `.replaced` holds all of them, so that whatever a run has
written beside it is the new run's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import ConfigError, Problem, RunError, one
from bumblecore_core.run.checkpoint.folder import FINAL, NAME, list_checkpoints
from bumblecore_core.run.console import note
from bumblecore_core.run.files import disk_errors, recover, remove_directory, writing_path
from bumblecore_core.run.lock import covered
from bumblecore_core.run.output_dir import OURS, require_no_other_file, written_by_a_run
from bumblecore_core.toolkit.disk import sync
from bumblecore_core.toolkit.history import RUN_FILE

LOGGERS = ("metrics.csv", "training_loss.png", "tensorboard", "mlflow_run_id.txt", "wandb_run_id.txt")
"""Files that loggers replace when a run starts, and that must be there again where it did not."""
REPLACED, PARTIAL = ".replaced", ".replaced.partial"
NO_INPUT = ("output_dir", "loggers", "data.cache_dir")


def check_overwrite(resolved: ResolvedRun) -> None:
    """Checks before anything is read that the run does not need what it replaces. Raises `ConfigError` BC039 for an
    input in there, `RunError` BC069 for files that no run is known to have written."""
    directory = Path(resolved.config.output_dir)
    require_no_other_file(directory)
    if not written_by_a_run(directory):
        _require_nothing_saved(directory)
        return
    real = os.path.realpath(directory)
    replaced = [real, *(os.path.join(real, path.name) for path in _written(directory))]
    problems = [
        Problem(
            code="BC039",
            field=f"{key}, output_dir",
            problem=f"{value} is in the output directory that --overwrite replaces",
            fix="Choose another output_dir",
        )
        for key, value in _texts(resolved.to_dict())
        if not covered(key, NO_INPUT) and _is_in(value, replaced)
    ]
    if problems:
        raise ConfigError(problems)


@contextmanager
def restored_unless_replaced(directory: Path, *, needed: bool) -> Iterator[None]:
    """Puts back at the end what was moved aside and not discarded; nothing is done unless `needed` (on ranks but 0)."""
    try:
        yield
    finally:
        if needed:
            with suppress(OSError):  # must not hide why the run ended; the next run here tries again
                if put_back(directory):
                    note(f"the new run did not complete a step: the earlier run is back in {directory}")


def set_aside(resolved: ResolvedRun) -> None:
    """Moves what an earlier run wrote to `.replaced` in the output directory; the new run's config file stays in place
    as well. Raises `RunError` BC042 or BC045."""
    directory, config = Path(resolved.config.output_dir), resolved.path
    if not written_by_a_run(directory):
        return
    partial = directory / PARTIAL
    with disk_errors(directory):
        partial.mkdir()
        for path in _written(directory):
            if config is not None and path.is_file() and config.exists() and path.samefile(config):
                _copy(path, partial / path.name)
            else:
                path.rename(partial / path.name)
        sync(partial)
        partial.rename(directory / REPLACED)
        sync(directory)


def discard(directory: Path) -> None:
    """Deletes what was moved aside: the new run has trained."""
    if (directory / REPLACED).is_dir():
        remove_directory(directory / REPLACED)


def put_back(directory: Path) -> bool:
    """Moves what was moved aside back, in place of what the new run has written. Whether there was anything."""
    replaced, partial = directory / REPLACED, directory / PARTIAL
    found = replaced.is_dir() or partial.is_dir()
    if replaced.is_dir():
        recover(directory)
        for path in _written(directory):
            if path.is_dir() or not (replaced / path.name).is_file():  # a file is replaced below, at no moment missing
                _delete(path)
        replaced.rename(partial)
    if partial.is_dir():
        recover(partial)
        for path in partial.iterdir():
            path.replace(directory / path.name)
        partial.rmdir()
        sync(directory)
    return found


def clear(directory: Path) -> None:
    """Deletes what a run wrote here, and nothing else."""
    if written_by_a_run(directory):
        recover(directory)
        for path in _written(directory):
            _delete(path)


def pending(directory: Path) -> bool:
    """Whether a crash left something that `put_back` will move."""
    return (directory / REPLACED).is_dir() or (directory / PARTIAL).is_dir()


def _written(directory: Path) -> list[Path]:
    """What a run writes, as far as it is there; not what a user put beside it."""
    names = [*OURS, *LOGGERS, *(checkpoint.path.name for checkpoint in list_checkpoints(directory))]
    return [directory / name for name in names if os.path.lexists(directory / name)]


def _require_nothing_saved(directory: Path) -> None:
    found = [path.name for path in _written(directory) if path.name == FINAL or NAME.fullmatch(path.name)]
    if found:
        problem = f"holds {', '.join(found)} without the {RUN_FILE} of the run that wrote it"
        fix = "Move these away, or choose another output_dir"
        raise one(RunError, "BC069", problem, fix, place=str(directory), field="output_dir")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a config, by its key."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str):
        yield key, value


def _is_in(text: str, places: Sequence[str]) -> bool:
    """Whether a text names the first of `places`, or one of the others or something in it."""
    try:
        path = os.path.realpath(os.path.expanduser(text))
    except ValueError:  # a NUL
        return False
    first, *others = places
    return bool(text) and (path == first or any(path == other or path.startswith(other + os.sep) for other in others))


def _copy(file: Path, target: Path) -> None:
    """A copy that is there completely or not at all."""
    temporary = writing_path(target)
    shutil.copy2(file, temporary)
    sync(temporary)
    temporary.rename(target)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
