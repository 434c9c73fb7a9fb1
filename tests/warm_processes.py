"""New Python processes without the seconds that imports take: forked from a server that has imported the libraries.

The server is multiprocessing's fork server, one per test process, started when it is first needed. It has not imported
this project and computes nothing, so that its children have neither the modules nor the threads of the test process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

LIBRARIES = [
    "torch",
    "torch._dynamo",
    "transformers",
    "transformers.models.qwen3.modeling_qwen3",
    "peft",
    "matplotlib.figure",
]
LIMIT = 600.0
"""Seconds after which a process that should have ended is killed: a safety net on a loaded machine."""


class WarmProcess:
    """`python *arguments` in a forked process: `-c CODE …`, `-m MODULE …` or `SCRIPT …`.

    `environment` replaces this process's. Handlers of `atexit` do not run.
    """

    def __init__(
        self, *arguments: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        self.arguments = [str(argument) for argument in arguments]
        self._output = tempfile.TemporaryDirectory()
        files = [self._path(name) for name in ("stdout", "stderr")]
        variables = dict(os.environ if environment is None else environment)
        self._process = context.Process(target=_run, args=(self.arguments, str(cwd or os.getcwd()), variables, files))
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def wait_for(self, there: Callable[[], bool], timeout: float = LIMIT) -> None:
        """Returns once `there()`. Raises `AssertionError` where the process ends before, or the time has run out."""
        until = time.monotonic() + timeout
        while not there():
            if time.monotonic() > until or not self.running():
                self.send_signal(signal.SIGKILL)
                raise AssertionError(f"not there in time: {self.end()}")
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process alone."""
        if self.running():
            os.kill(self.pid, number)

    def end(self, timeout: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """Waits for the end. The exit code is negative for a process that a signal ended.

        Raises `subprocess.TimeoutExpired` and kills the process where it has not ended after `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            os.kill(self.pid, signal.SIGKILL)
            self._process.join()
            raise subprocess.TimeoutExpired(self.arguments, timeout, *map(self._read, ("stdout", "stderr")))
        return subprocess.CompletedProcess(
            self.arguments, self._process.exitcode, *map(self._read, ("stdout", "stderr"))
        )

    def _path(self, name: str) -> str:
        return os.path.join(self._output.name, name)

    def _read(self, name: str) -> str:
        path = Path(self._path(name))
        return path.read_text() if path.exists() else ""


def run_warm(
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = LIMIT,
) -> subprocess.CompletedProcess[str]:
    """Runs `python *arguments` as `subprocess.run(…, text=True, capture_output=True)` does; see `WarmProcess`."""
    return WarmProcess(*arguments, cwd=cwd, environment=environment).end(timeout)


def print_to(out: Path, err: Path) -> None:
    """Appends all that this process prints to standard output and standard error to two files."""
    sys.stdout, sys.stderr = out.open("a"), err.open("a")
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)


def _run(arguments: list[str], cwd: str, environment: Mapping[str, str], files: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    print_to(*map(Path, files))
    first, *rest = arguments
    match first:
        case "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.path.insert(0, "")
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        case "-m":
            sys.argv = rest
            sys.path.insert(0, cwd)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        case _:
            sys.argv = arguments
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
