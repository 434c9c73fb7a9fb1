"""A process that `bumble run --nproc` started: what it leaves for its launcher to tell, and that it ends with it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bumblecore_core.errors import BumbleError

LAUNCHED = "BUMBLE_LAUNCHED"  # the directory in which ranks leave their failures
INTERRUPTED = 128 + signal.SIGINT
DEFECT = 1  # as Python exits after an exception that nobody caught
LOOKS_EVERY = 1.0  # seconds between two looks for the launcher


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


@contextmanager
def told_to_launcher() -> Iterator[None]:
    """Under `bumble run --nproc`, turns an exception into a `Failure` on disk and an exit code: the launcher prints it
    once, whatever number of ranks met it. In any other process nothing is changed."""
    place = os.environ.get(LAUNCHED)
    if not place or "RANK" not in os.environ:
        yield
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        yield
    except (click.exceptions.Exit, click.ClickException):
        raise
    except BumbleError as error:
        text = (traceback.format_exc() if os.environ.get("BUMBLE_TRACEBACK") == "1" else "") + error.render()
        foreign = all(problem.code == "BC067" for problem in error.problems)
        raise _leave(Path(place), code=error.exit_code, text=text, foreign=foreign) from None
    except KeyboardInterrupt:
        raise _leave(Path(place), code=INTERRUPTED, text="interrupted") from None
    except Exception:
        raise _leave(Path(place), code=DEFECT, text=traceback.format_exc().rstrip(), defect=True) from None


def left_in(place: Path) -> dict[int, Failure]:
    """What ranks left in `place`, by rank."""
    found = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in place.glob("rank-*.json")]
    return {failure.rank: failure for failure in found}


def _leave(place: Path, *, code: int, text: str, foreign: bool = False, defect: bool = False) -> Exception:
    rank = int(os.environ["RANK"])
    failure = Failure(rank=rank, code=code, at=time.time(), text=text, foreign=foreign, defect=defect)
    path = place / f"rank-{rank}.json"
    try:
        path.with_suffix(".writing").write_text(json.dumps(asdict(failure)), encoding="utf-8")
        path.with_suffix(".writing").replace(path)
    except OSError:  # the disk is full, or the launcher is gone
        with suppress(OSError):
            click.echo(f"rank {rank}: {text}", err=True)
    return click.exceptions.Exit(code)


def _end_with(launcher: int) -> None:
    """Once the launcher has died (kill -9), asks this process to save and stop: ranks are not its terminal's, so
    nobody else would end them."""
    while os.getppid() == launcher:
        time.sleep(LOOKS_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
