"""Starts the programs of a comparison and measures their memory; tells what machine they ran on.

Imports nothing heavy, for the reason given in `setting.py`.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent
LIBRARIES = ("bumblecore", "torch", "transformers", "trl", "accelerate", "peft")
MIB = 2**20


class RunFailed(Exception):
    """A process failed. `args[0]`: the command, then the last lines that it wrote."""


class Processes:
    """Fresh processes with one environment: `threads` each, nothing from a network, no other plugins."""

    def __init__(self, directory: Path, *, threads: int, cpu_only: bool) -> None:
        self.directory, self.log = directory, directory / "log.txt"
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(directory / "datasets"),
            "BUMBLE_NO_PLUGINS": "1",
            "PYTHONPATH": os.pathsep.join([str(PEERS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        if cpu_only:
            self.environment["CUDA_VISIBLE_DEVICES"] = ""

    def run(self, command: list[str]) -> int:
        """Runs to the end; returns the process's own peak resident size in bytes. What it wrote is in `log`."""
        with self.log.open("wb") as sink:
            process = subprocess.Popen(command, env=self.environment, stdout=sink, stderr=sink, cwd=self.directory)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            lines = self.log.read_text(errors="replace").splitlines()
            raise RunFailed([f"failed: {' '.join(command)}", *lines[-25:]])
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def run_part(self, name: str, *arguments: str) -> int:
        """Runs a program of this directory."""
        return self.run([sys.executable, str(PEERS / name), *arguments])

    def run_bumble(self, config: Path, settings: list[str], *, on_gpu: bool) -> int:
        """`bumble run`, which begins anew; `settings`: what is given to `--set`."""
        plugin = ["-p", "cuda_peak"] if on_gpu else []
        given = [word for setting in settings for word in ("--set", setting)]
        return self.run([sys.executable, "-m", "bumblecore_core", *plugin, "run", "--overwrite", str(config), *given])

    def has_gpu(self) -> bool:
        """Asked in another process: this one must stay small."""
        check = [sys.executable, "-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"]
        return subprocess.run(check, env=self.environment, check=False).returncode == 0


def bumble_cuda_peak(run: Path, *, on_gpu: bool) -> int:
    """Bytes that the logger `cuda_peak` wrote into a run's directory; 0 without a GPU."""
    return int((run / "cuda_peak.txt").read_text()) if on_gpu else 0


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Options that every comparison has."""
    parser.add_argument("--rounds", type=int, default=2, help="runs of each framework")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = None
    return {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), **libraries}


def processor() -> str:
    """The processor's name; on Linux from /proc/cpuinfo."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
