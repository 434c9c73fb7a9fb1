"""Names the plugin whose code raised: the failure policy for everything but loggers."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from bumblecore_core.errors import BumbleError, PluginError, one
from bumblecore_core.registry import singular


@contextmanager
def blamed(kind: str, name: str) -> Iterator[None]:
    """Turns whatever plugin code raises inside into `PluginError` BC060 with the plugin's name and the place.

    `BumbleError`s pass, since they say it better, and so does running out of memory, which is nobody's defect.
    """
    try:
        yield
    except (BumbleError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = (
            f"the {singular(kind)} '{name}' raised {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        )
        fix = "Choose another one, or report this to its author; BUMBLE_TRACEBACK=1 shows where it came from"
        raise one(PluginError, "BC060", problem, fix, field=f"{kind}.{name}") from error
