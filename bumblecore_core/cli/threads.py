"""How threads of OpenMP wait for work: set before a library that loads OpenMP is imported, for it is read only then."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""GCC's runtime, which is in PyTorch's wheels: rounds that an idle thread spins before it sleeps. LLVM's and Intel's
(macOS, conda): milliseconds."""


def let_idle_threads_sleep(environ: MutableMapping[str, str] = os.environ) -> None:
    """Has idle OpenMP threads of this process, and of those that it starts, sleep soon. By default they spin for
    milliseconds after each parallel region, and take the cores from other processes and from the threads that compute.

    What the user has set stays, `OMP_WAIT_POLICY` too, which these variables would override.
    """
    if environ.get("OMP_WAIT_POLICY"):
        return
    for name, value in WAITING.items():
        environ.setdefault(name, value)
