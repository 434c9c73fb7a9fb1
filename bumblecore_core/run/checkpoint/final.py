"""The final model of a run: weights without training state, committed like a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bumblecore_core.protocols import Engine
from bumblecore_core.run.agree import on_all_ranks
from bumblecore_core.run.checkpoint.writing import ModelParts, commit, write_part
from bumblecore_core.run.files import disk_errors, fresh_beside
from bumblecore_core.run.lock import lock_digest
from bumblecore_core.run.loggers import Loggers


def save_final(
    parts: ModelParts, engine: Engine, loggers: Loggers, final: Path, *, step: int, lock: Mapping[str, Any]
) -> Path:
    """Writes and commits the model to `final`; `lock`: what the run was made from, by which a later run of the same
    output directory knows the model. Raises `RunError`. A collective."""
    state = engine.model_state(wanted=parts.wanted)

    def write() -> None:
        if engine.rank != 0:
            return
        with disk_errors(final):
            temporary = fresh_beside(final)
        try:
            write_part(temporary, 0, lambda directory: parts.write(directory, state))
            commit(temporary, final, world_size=1, facts={"step": step, "lock": lock_digest(lock)})
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the room
            raise
        loggers.saved(final)

    on_all_ranks(engine, write, "saving the final model")
    return final
