"""The day that chat templates print as today's."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from bumblecore_core.config.schema import RunConfig
from bumblecore_core.run.lock import read_lock
from bumblecore_core.toolkit.history import LOCK_FILE
from bumblecore_core.toolkit.templates import prints_date


def template_date(config: RunConfig, tokenizer: Any) -> str | None:
    """The day (YYYY-MM-DD) that the config sets, else the one of this run's first start, else today; None where the
    template prints none."""
    if not prints_date(tokenizer):
        return None
    if config.model.chat_template_date is not None:
        return config.model.chat_template_date.isoformat()
    lock = read_lock(Path(config.output_dir) / LOCK_FILE)
    earlier = lock.get("template_date") if lock is not None else None
    return earlier if isinstance(earlier, str) else date.today().isoformat()
