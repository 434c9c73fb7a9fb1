"""`--nproc`: one command in several processes on this machine, and how their end is told."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bumblecore_core.cli.launched import INTERRUPTED, LAUNCHER, left_in
from bumblecore_core.errors import ConfigError, RunError, one
from bumblecore_core.registry import PluginSwitches
from bumblecore_core.run.interrupts import AS_A_SHELL_DOES, SIGNALS
from bumblecore_core.toolkit.disk import disk_code
from bumblecore_core.toolkit.launch_environment import other_launcher
from bumblecore_core.toolkit.rank_errors import LAUNCHED, Failure
from bumblecore_core.toolkit.terminal import echo

if TYPE_CHECKING:
    from bumblecore_core.cli.elastic import Agent

COUNTED = ("auto", "gpu")
SIGNAL_NOTICED_LATE = 0.5  # seconds: a process that a signal ends is noticed later than one that says that it fails


def _processes(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int:
    """How many processes `--nproc` asks for. Raises `ConfigError` BC067 in a process that a launcher has started."""
    if value is None:
        return 1
    keys: tuple[str, ...] = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if launcher := other_launcher(os.environ):
        keys = (*keys, launcher.rank, launcher.size)
    placed = [f"{key}={os.environ[key]}" for key in keys if os.environ.get(key)]
    if placed:
        raise one(
            ConfigError,
            "BC067",
            f"{' and '.join(placed)}: a launcher such as torchrun or srun has started this process already",
            "Leave --nproc out under a launcher; where there is none, unset these variables",
            field="--nproc",
        )
    if value in COUNTED:
        import torch

        return max(1, torch.cuda.device_count())
    if not (value.isascii() and value.isdigit() and int(value) >= 1):
        raise click.BadParameter(f"{value!r} is neither a number from 1 on nor auto nor gpu", ctx, parameter)
    return int(value)


nproc_option = click.option(
    "--nproc",
    "processes",
    metavar="N|auto",
    callback=_processes,
    help="Processes on this machine; auto (or gpu): one for each GPU, else one.  [default: 1]",
)


def bumble_command(switches: PluginSwitches, *more_plugins: str) -> list[str]:
    """The command that starts `bumble` in a process of its own, with this one's switches."""
    command = [sys.executable, "-m", "bumblecore_core"]
    command += ["--no-plugins"] if switches.builtins_only else []
    for module in (*more_plugins, *switches.modules):
        command += ["-p", module]
    return command


def launch(command: Sequence[str], processes: int) -> int:
    """Runs `command` in `processes` ranks and comes back when all have ended; the exit code of the one that failed
    first, and 128 + n for a signal. What a rank left of its failure is printed once.

    Raises `RunError` BC067 where a rank ended without a word (kill -9, a crash), and `KeyboardInterrupt` after a
    second Ctrl-C.
    """
    from bumblecore_core.cli.elastic import Agent

    with _temporary_directory() as directory:
        place = Path(directory)
        with _environment(_for_ranks(processes, place)):
            agent = Agent(command, processes, place)
            agent.until_all_ended()
        return _told(agent, left_in(place))


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """Raises `RunError` BC045 or BC042."""
    try:
        return tempfile.TemporaryDirectory(prefix="bumble-run-")
    except OSError as error:  # no usable directory at all, too
        place = tempfile.tempdir or os.environ.get("TMPDIR", "")
        problem = f"no temporary directory can be created: {error.strerror or error}"
        fix = "Free some space there, or set TMPDIR to a directory on another disk"
        raise one(RunError, disk_code(error) or "BC042", problem, fix, place=place, field="TMPDIR") from error


def _for_ranks(processes: int, place: Path) -> dict[str, str]:
    """What ranks find in their environment beside their place in the group."""
    wanted = {LAUNCHED: str(place), LAUNCHER: str(os.getpid())}
    wanted |= {"TORCHELASTIC_SIGNALS_TO_HANDLE": ""}  # the agent takes signals as they are meant
    if not os.environ.get("OMP_NUM_THREADS"):
        wanted["OMP_NUM_THREADS"] = str(max(1, _cores() // processes))
    if "GLOO_SOCKET_IFNAME" not in os.environ and "lo" in (name for _, name in socket.if_nameindex()):
        wanted["GLOO_SOCKET_IFNAME"] = "lo"  # no name to resolve, and no network that may go away
    if sys.path[0] not in ("", os.getcwd()):
        wanted["PYTHONSAFEPATH"] = "1"  # `-m` would let a file of the working directory hide a library
    return wanted


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _told(agent: Agent, left: Mapping[int, Failure]) -> int:
    """Prints why ranks failed; the exit code."""
    if agent.hurried:
        raise KeyboardInterrupt
    failures = _in_order(agent, left)
    if not failures:
        return 0
    first = failures[0]
    if first.text:
        for text, ranks in _worth_telling(failures).items():
            everywhere = len(ranks) == agent.processes or text.startswith(INTERRUPTED)
            echo(text if everywhere else f"{_named(ranks)}: {text}", err=True)
        return first.code
    code = AS_A_SHELL_DOES - first.code if first.code < 0 else first.code
    asked = {AS_A_SHELL_DOES + number for number in SIGNALS}
    if code in asked and (first.code > 0 or -first.code == agent.received):
        return code  # the run has saved and said so, or it was asked to end before it had begun
    raise _without_a_word(first, agent.processes, code)


def _in_order(agent: Agent, left: Mapping[int, Failure]) -> list[Failure]:
    """Ranks that failed by themselves, those first that failed first; those that only met another's failure last."""
    failures = []
    for rank in range(agent.processes):
        code, noticed = agent.ended.get(rank, (0, 0.0))
        if rank in left:
            failures.append(left[rank])
        elif code and rank not in agent.killed:
            failures.append(Failure(rank=rank, code=code, at=noticed - (SIGNAL_NOTICED_LATE if code < 0 else 0.0)))
    return sorted(failures, key=lambda failure: (failure.foreign, failure.at))


def _worth_telling(failures: Sequence[Failure]) -> dict[str, list[int]]:
    """Texts with the ranks that they are of: the first failure's, and others that are no consequence of it."""
    texts: dict[str, list[int]] = {}
    for failure in failures:
        follows = failure.foreign or failure.defect or not failure.text
        if not follows or not texts or failure.text in texts:
            texts.setdefault(failure.text, []).append(failure.rank)
    return {text: sorted(ranks) for text, ranks in texts.items()}


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _without_a_word(failure: Failure, processes: int, code: int) -> Exception:
    if failure.code < 0:
        how = f"was ended by {signal.Signals(-failure.code).name}"
    else:
        how = f"ended with exit code {failure.code} and said no reason"
    fix = "The same command goes on from the newest checkpoint"
    if failure.code == -signal.SIGKILL:
        fix = f"Unless somebody did that, memory ran out (the kernel's log says so). {fix}"
    error = one(RunError, "BC067", f"rank {failure.rank} of {processes} {how}, and the others were stopped", fix)
    error.exit_code = code
    return error
