"""Ranks that are forked from a process that has imported what they need: imports take seconds in each new process.

As a script, `python forked_ranks.py RANKS SCRIPT [ARGUMENT …]` runs SCRIPT in each rank, as torchrun does, and writes
their exit codes to the file that the variable `CODES` names; `run_ranks` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from warm_processes import print_to, run_warm

CODES, IMPORTS = "FORKED_RANKS_CODES", "FORKED_RANKS_IMPORTS"


def run_ranks(
    script: Path,
    *arguments: str,
    ranks: int,
    timeout: float,
    cwd: Path | None = None,
    codes: Path | None = None,
    imports: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Runs `script` in each rank, forked from a new process: the way for tests, whose worker may have trained before
    and then has threads that a fork does not copy. `codes`: a file for the ranks' exit codes, as a JSON list.
    `imports`: modules that all ranks need."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", IMPORTS: " ".join(imports)}
    if codes is not None:
        environment[CODES] = str(codes)
    return run_warm(__file__, ranks, script, *arguments, cwd=cwd, environment=environment, timeout=timeout)


def fork_ranks(
    call: Callable[[int], None], ranks: int, *, limit: float, output: tuple[Path, Path] | None = None
) -> list[int]:
    """Exit codes, by rank, of processes that do `call(rank)`; of a process ended by a signal its negative number.

    `output`: files for what all of them print, to standard output and to standard error. Raises `AssertionError` where
    a process has not ended after `limit` seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            _run(call, rank, ranks, port, output)
        children.append(child)
    return _wait(children, limit)


def _run(call: Callable[[int], None], rank: int, ranks: int, port: int, output: tuple[Path, Path] | None) -> None:
    code = 99
    try:
        if output is not None:
            print_to(*output)
        if ranks > 1:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        call(rank)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: Sequence[int], limit: float) -> list[int]:
    codes: dict[int, int] = {}
    end = time.monotonic() + limit
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for child in set(children) - codes.keys():
                os.kill(child, 9)
                os.waitpid(child, 0)
            raise AssertionError(f"a process had not ended after {limit} s")
        time.sleep(0.005)
    return [codes[child] for child in children]


def main(ranks: str, script: str, *arguments: str) -> None:
    for module in ("bumblecore_core.cli", "bumblecore_plugins.engines.torch_engine", *os.environ[IMPORTS].split()):
        importlib.import_module(module)
    sys.argv = [script, *arguments]
    codes = fork_ranks(lambda rank: runpy.run_path(script, run_name="__main__") and None, int(ranks), limit=900.0)
    if CODES in os.environ:
        Path(os.environ[CODES]).write_text(json.dumps(codes))
    sys.exit(any(codes))


if __name__ == "__main__":
    main(*sys.argv[1:])
