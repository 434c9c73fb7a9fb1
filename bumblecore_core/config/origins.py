"""Says where a key is written, in errors that only a running run can find."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bumblecore_core.config.overrides import COMMAND_LINE
from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import BumbleError, Problem, printable

_INDEX = re.compile(r"\[(\d+)\]")


@contextmanager
def located(run: ResolvedRun) -> Iterator[None]:
    """Gives problems about a key of the config that have no place yet the place where that key is written."""
    try:
        yield
    except BumbleError as error:
        error.problems = tuple(_located(problem, run) for problem in error.problems)
        raise


def _located(problem: Problem, run: ResolvedRun) -> Problem:
    if problem.place or not problem.field:
        return problem
    key = _INDEX.sub(r".\1", problem.field.partition(",")[0])
    found = [origin for name, origin in run.origins.items() if name == key or name.startswith(f"{key}.")]
    if not found:
        return problem  # the field of something else than this config
    written = next((origin for origin in found if origin != "default"), printable(str(run.path)))
    return replace(problem, place=COMMAND_LINE if written == "command line" else written)
