"""How a rank reports why it ends: to `bumble run --nproc`, which prints it, or on its own terminal."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from bumblecore_core.errors import BumbleError
from bumblecore_core.toolkit.launch_environment import OTHER_LAUNCHERS, Launch, read_launch
from bumblecore_core.toolkit.terminal import echo

LAUNCHED = "BUMBLE_LAUNCHED"  # the directory in which ranks leave their failures
RANK_KEYS = ("RANK", *(launcher.rank for launcher in OTHER_LAUNCHERS))
LINGER = 3.0  # seconds that a rank under another launcher stays after its error, while others may report the same


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a rank ended. `code`: its exit code, negative for a signal, as subprocess has it. `at`: seconds since the
    epoch. `foreign`: all it says is that another rank failed. `defect`: `text` is a traceback."""

    rank: int
    code: int
    at: float
    text: str = ""
    foreign: bool = False
    defect: bool = False


def leave_failure(place: Path, failure: Failure) -> None:
    """Writes the failure where `bumble run --nproc` looks for it, or to stderr where that is impossible."""
    path = place / f"rank-{failure.rank}.json"
    try:
        path.with_suffix(".writing").write_text(json.dumps(asdict(failure)), encoding="utf-8")
        path.with_suffix(".writing").replace(path)
    except OSError:  # the disk is full, or the launcher is gone
        _print(f"rank {failure.rank}: {failure.text}")


def is_foreign(error: BumbleError) -> bool:
    """Whether all that the error says is that another rank failed."""
    return all(problem.code == "BC067" for problem in error.problems)


def print_rank_error(error: BumbleError) -> None:
    """Prints an error to stderr. One of several processes adds its rank and host, and prints nothing where a process on
    this machine is reporting the same error."""
    launch = _launch(os.environ)
    if launch.world_size == 1:
        _print(error.render())
        return
    with _first_to_report(error.render(), os.environ) as first:
        if first:
            _print(f"rank {launch.rank} ({socket.gethostname()}): {error.render()}")
            if not is_foreign(error):
                # torchrun ends all ranks as soon as one has: those with other errors would never report them
                time.sleep(LINGER)


def end_process(error: BumbleError) -> NoReturn:
    """Reports the error and ends this process now, from any thread, whatever the main thread waits for."""
    place, rank = os.environ.get(LAUNCHED), os.environ.get("RANK", "")
    if place and rank.isdigit():
        failure = Failure(
            rank=int(rank), code=error.exit_code, at=time.time(), text=error.render(), foreign=is_foreign(error)
        )
        leave_failure(Path(place), failure)
    else:
        print_rank_error(error)
    os._exit(error.exit_code)


def _print(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed, or a full disk: the exit code still says it
        echo(text, err=True)


def _launch(environ: Mapping[str, str]) -> Launch:
    try:
        return read_launch(environ)
    except BumbleError:  # probably the error to print: every process of the launch raises it
        rank = next((environ[key] for key in RANK_KEYS if key in environ), "")
        return Launch(rank=int(rank), world_size=2) if rank.isdigit() else Launch()


@contextmanager
def _first_to_report(text: str, environ: Mapping[str, str]) -> Iterator[bool]:
    """Whether no other process of this launch on this machine is reporting `text`, as this one does inside.

    A name in Linux's abstract socket namespace belongs to one process and is free again once that has ended, however it
    ends: nothing is left behind that could silence a later launch. Elsewhere every process reports.
    """
    launch = [environ.get(key, "") for key in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")]
    digest = hashlib.sha256("\0".join([str(os.getuid()), *launch, text]).encode()).hexdigest()
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            if sys.platform.startswith("linux"):
                claim.bind(f"\0bumble-error-{digest[:32]}")
        except OSError:
            yield False
            return
        yield True
