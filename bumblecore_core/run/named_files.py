"""Files that plugins' options name and whose content a resumed run compares (`ByContent`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bumblecore_core.config.resolved import ResolvedRun, Selected
from bumblecore_core.errors import ConfigError, Problem
from bumblecore_core.records import ByContent
from bumblecore_core.registry import singular
from bumblecore_core.run.hashing import file_hash
from bumblecore_core.toolkit.regular_files import irregular


def chosen_plugins(resolved: ResolvedRun) -> list[Selected[Any]]:
    """Every plugin that takes part in a run and has options of its own."""
    chosen: list[Selected[Any]] = [resolved.stage, resolved.loss, resolved.optimizer, resolved.scheduler]
    return [*chosen, resolved.engine, *resolved.loggers, *([resolved.adapter] if resolved.adapter else [])]


def require_named_files(resolved: ResolvedRun) -> None:
    """Raises `ConfigError` BC061 for each file that cannot be read, before anything else is."""
    problems = []
    for chosen in chosen_plugins(resolved):
        for option, file in _named(chosen).items():
            if (reason := _why_unreadable(file)) is not None:
                problems.append(
                    Problem(
                        code="BC061",
                        problem=f"the file for '{chosen.name}' cannot be read: {reason}",
                        fix="Check the path",
                        place=str(file),
                        field=f"{singular(chosen.record.kind)}.{option}",
                    )
                )
    if problems:
        raise ConfigError(problems)


def _why_unreadable(file: Path) -> str | None:
    if (kind := irregular(file)) is not None:
        return f"it is {kind}"
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return getattr(error, "strerror", None) or str(error)
    return None


def content_hashes(chosen: Selected[Any]) -> dict[str, str]:
    """SHA-256 of what the files hold, by option."""
    return {option: file_hash(file) for option, file in _named(chosen).items()}


def _named(chosen: Selected[Any]) -> dict[str, Path]:
    return {
        name: Path(os.path.expanduser(path))
        for name, field in type(chosen.options).model_fields.items()
        if any(isinstance(mark, ByContent) for mark in field.metadata) and (path := getattr(chosen.options, name))
    }
