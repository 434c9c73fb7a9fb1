"""A process that `bumble run --nproc` started: what it leaves for its launcher to tell, and that it ends with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bumblecore_core.errors import BumbleError
from bumblecore_core.run.interrupts import AS_A_SHELL_DOES, interrupted_by
from bumblecore_core.toolkit.rank_errors import LAUNCHED, Failure, is_foreign, leave_failure

LAUNCHER = "BUMBLE_LAUNCHER"  # the process that this one ends with
INTERRUPTED = "interrupted"
DEFECT = 1  # as Python exits after an exception that nobody caught
LOOKS_EVERY = 1.0  # seconds between two looks for the launcher


@contextmanager
def told_to_launcher() -> Iterator[None]:
    """Under `bumble run --nproc`, turns an exception into a `Failure` on disk and an exit code: the launcher prints it
    once, whatever number of ranks met it. In any other process nothing is changed."""
    place = os.environ.get(LAUNCHED)
    # not the parent of now, which is another where the launcher has died already; and not for processes started here
    if launcher := os.environ.pop(LAUNCHER, None):
        threading.Thread(target=_end_with, args=(int(launcher), place), daemon=True).start()
    if not place or "RANK" not in os.environ:
        yield
        return
    try:
        yield
    except (click.exceptions.Exit, click.ClickException):
        raise
    except BumbleError as error:
        text = (traceback.format_exc() if os.environ.get("BUMBLE_TRACEBACK") == "1" else "") + error.render()
        raise _leave(Path(place), code=error.exit_code, text=text, foreign=is_foreign(error)) from None
    except KeyboardInterrupt as error:
        raise _leave(Path(place), code=AS_A_SHELL_DOES + interrupted_by(error), text=interrupted_text(error)) from None
    except Exception:
        raise _leave(Path(place), code=DEFECT, text=traceback.format_exc().rstrip(), defect=True) from None


def interrupted_text(error: BaseException) -> str:
    """What is printed of an interrupt where a run has nothing to save."""
    number = interrupted_by(error)
    return INTERRUPTED if number == signal.SIGINT else f"{INTERRUPTED} by {signal.Signals(number).name}"


def left_in(place: Path) -> dict[int, Failure]:
    """What ranks left in `place`, by rank."""
    found = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in place.glob("rank-*.json")]
    return {failure.rank: failure for failure in found}


def _leave(place: Path, *, code: int, text: str, foreign: bool = False, defect: bool = False) -> Exception:
    rank = int(os.environ["RANK"])
    failure = Failure(rank=rank, code=code, at=time.time(), text=text, foreign=foreign, defect=defect)
    leave_failure(place, failure)
    return click.exceptions.Exit(code)


def _end_with(launcher: int, place: str | None) -> None:
    """Once the launcher has died (kill -9), asks this process to save and stop: ranks are not its terminal's, so
    nobody else would end them. What it cannot delete any more is deleted: its directory `place`."""
    while os.getppid() == launcher:
        time.sleep(LOOKS_EVERY)
    if place:
        shutil.rmtree(place, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
