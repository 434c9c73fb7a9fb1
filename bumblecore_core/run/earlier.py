"""What an earlier run left in the output directory, looked at by rank 0 for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.protocols import Engine
from bumblecore_core.run import output_dir
from bumblecore_core.run.agree import on_all_ranks
from bumblecore_core.run.files import recover
from bumblecore_core.run.overwrite import check_overwrite, put_back

WHAT = "looking at the output directory"


def find_finished_run(resolved: ResolvedRun, engine: Engine, *, overwrite: bool) -> Mapping[str, Any] | None:
    """What the finished run in the output directory was made from (on ranks other than 0 an empty mapping); None where
    there is none, or it will be replaced. Repairs what a crash left. A collective; raises `RunError` on all ranks."""
    directory = Path(resolved.config.output_dir)

    def look() -> Mapping[str, Any] | None:
        if engine.rank != 0:
            return None
        put_back(directory)
        recover(directory)
        if overwrite:
            check_overwrite(resolved)
            return None
        return output_dir.finished_run(resolved)

    found = on_all_ranks(engine, look, WHAT)
    there = engine.sum_over_ranks([float(found is not None)])[0]
    return (found or {}) if there else None


def is_complete(resolved: ResolvedRun, engine: Engine, finished: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    """`output_dir.is_complete`, as a collective."""
    complete = on_all_ranks(engine, lambda: engine.rank == 0 and output_dir.is_complete(resolved, finished, lock), WHAT)
    return bool(engine.sum_over_ranks([float(complete)])[0])
