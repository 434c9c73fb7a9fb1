"""Starts the programs of a comparison, in turn, and measures their memory; tells what machine they ran on.

Imports nothing heavy, for the reason given in `setting.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from setting import DTYPES, PRESETS

PEERS = Path(__file__).resolve().parent
LIBRARIES = ("bumblecore", "torch", "transformers", "trl", "accelerate", "peft")
MIB = 2**20
TOLD = ("preset", "dtype", "batch_size", "rows", "threads", "on_gpu")
"""What of a setting is written beside the figures."""
Run = dict[str, Any]


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
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),  # as `bumble` sets it, for the peers too
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


def set_up(args: argparse.Namespace, directory: Path, *, rows: int) -> tuple[Processes, dict[str, Any]]:
    """(the processes, the setting, which lies in `setting.json` too) of a comparison in `directory`."""
    processes = Processes(directory, threads=args.threads, cpu_only=args.device == "cpu")
    setting = {
        "directory": str(directory),
        "preset": args.preset,
        "vocabulary": args.vocab,
        "rows": rows,
        "batch_size": args.batch_size,
        "dtype": args.dtype,
        "data": str(args.data.resolve()) if args.data else None,
        "threads": args.threads,
        "on_gpu": args.device == "auto" and processes.has_gpu(),
    }
    (directory / "setting.json").write_text(json.dumps(setting))
    return processes, setting


def in_turn(
    candidates: Sequence[tuple[str, str]], rounds: int, run: Callable[[str, str], Run], told: Callable[[str, Run], None]
) -> dict[str, list[Run]]:
    """Runs of each candidate (framework, variant), in alternation. The key is the framework, with the variant where it
    has several; `told` gets each run with words for what it is."""
    frameworks = [framework for framework, _ in candidates]
    runs: dict[str, list[Run]] = {}
    for round_number in range(1, rounds + 1):
        for framework, variant in candidates:
            key = framework if frameworks.count(framework) == 1 else f"{framework} {variant}"
            found = run(framework, variant)
            runs.setdefault(key, []).append(found)
            told(f"round {round_number}: {framework} {variant}", found)
    return runs


def fastest(
    framework: str,
    names: Sequence[str],
    run: Callable[[str, str], Run],
    speed: Callable[[Run], float],
    told: Callable[[str, Run], None],
) -> str:
    """The variant with the highest speed in a short run. Raises `RunFailed` where the framework runs in none."""
    speeds = {}
    for name in names:
        try:
            found = run(framework, name)
        except RunFailed as failure:
            print(f"pilot: {framework} {name} does not run: {failure.args[0][-1]}", flush=True)
            continue
        speeds[name] = speed(found)
        told(f"pilot: {framework} {name}", found)
    if not speeds:
        raise RunFailed([f"{framework} runs in none of its settings"])
    return max(speeds, key=lambda name: speeds[name])


def peers_run(processes: Processes, worker: str, *arguments: str) -> Run:
    """What a worker writes of a peer's run, with its process's peak of memory."""
    directory = processes.directory
    out = directory / "out.json"
    peak = processes.run_part(worker, str(directory / "setting.json"), *arguments, str(out))
    return {**json.loads(out.read_text()), "peak_rss_bytes": peak}


def bumble_run(
    processes: Processes, config: str, variant: str, settings: list[str], *, step_tokens: Sequence[int], on_gpu: bool
) -> tuple[Run, list[dict[str, Any]]]:
    """(seconds, losses and memory of `bumble run`, its metrics of each step). It must train on `step_tokens`."""
    run = processes.directory / "run"
    peak = processes.run_bumble(processes.directory / config, settings, on_gpu=on_gpu)
    steps = json.loads((run / "metrics.json").read_text())
    seconds = [1 / step["steps_per_second"] for step in steps]
    tokens = [round(step["tokens_per_second"] * second) for step, second in zip(steps, seconds, strict=True)]
    if tokens != step_tokens:
        raise SystemExit(f"bumble run trained on {tokens} tokens, not on {step_tokens}")
    found = {
        "variant": variant,
        "seconds": seconds,
        "losses": [step["loss"] for step in steps],
        "peak_rss_bytes": peak,
        "peak_cuda_bytes": int((run / "cuda_peak.txt").read_text()) if on_gpu else 0,
    }
    return found, steps


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that every comparison has."""
    parser.add_argument("--preset", choices=PRESETS, default="large-vocab", help="the model's shape")
    parser.add_argument("--vocab", type=int, help="another vocabulary than the preset's")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
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
