"""Puts the faults of `tests/faults/*.yaml` into a copy of the code, one at a time, and reports which ones survive.

    python tests/mutants.py                      # all areas, about an hour on 2 cores
    python tests/mutants.py --area loop --area memory
    python tests/mutants.py --jobs 1 --show      # with the last lines of each test run

A fault is an edit that a tired programmer could make: `find` occurs once in `file` and becomes `replace`. The tests of
its area (or its own) are run until the first failure; a fault survives where all of them pass. Each area's tests are
first run on the unchanged copy, where they must pass. Exit code 1 where less than 90 % of all faults or less than 80 %
of an area's are noticed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import yaml

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "tests" / "faults"
ALL, EACH = 0.9, 0.8  # the shares of faults that must be noticed, over all areas and in each one
LIMIT = 300.0  # seconds; a fault that makes its tests hang is noticed too
QUICK = "not slow and not exhaustive"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One edit. `tests`: what pytest is given; `slow`: whether the slow ones among them are run."""

    area: str
    number: int
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    slow: bool = False

    @property
    def name(self) -> str:
        return f"{self.area}-{self.number}"

    def apply_to(self, text: str) -> str:
        """`text` with the fault. Raises `ValueError` where it does not apply exactly once."""
        if (count := text.count(self.find)) != 1:
            raise ValueError(f"{self.name}: {self.find!r} occurs {count} times in {self.file}")
        return text.replace(self.find, self.replace)


def read_faults(directory: Path = FAULTS) -> list[Fault]:
    """Every stored fault, by area (the name of its file) and place in it."""
    found = []
    for path in sorted(directory.glob("*.yaml")):
        area = yaml.safe_load(path.read_text(encoding="utf-8"))
        for number, fault in enumerate(area["faults"], 1):
            fields = {"tests": area["tests"], "slow": area.get("slow", False), **fault}
            fields.pop("why", None)
            found.append(Fault(area=path.stem, number=number, **{**fields, "tests": tuple(fields["tests"])}))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", action="append", help="only this area; repeatable")
    parser.add_argument("--fault", action="append", help="only this fault, such as loop-3; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="copies that are tested side by side")
    parser.add_argument("--show", action="store_true", help="show the last lines of each test run")
    options = parser.parse_args()
    faults = [
        fault
        for fault in read_faults()
        if (not options.area or fault.area in options.area) and (not options.fault or fault.name in options.fault)
    ]
    with tempfile.TemporaryDirectory(prefix="bumble-mutants-") as place:
        copies: Queue[Path] = Queue()
        for job in range(options.jobs):
            copies.put(_copied(Path(place) / f"copy-{job}"))
        if broken := _broken_without_a_fault(faults, copies, options.jobs):
            print("\n\n".join(f"FAILS WITHOUT A FAULT: {' '.join(tests)}\n{tail}" for tests, tail in broken.items()))
            return 2

        def noticed(fault: Fault) -> bool:
            with _one_of(copies) as copy, _faulty(copy, fault):
                passed, seconds, tail = _passes(copy, fault.tests, slow=fault.slow)
            print(f"{'SURVIVED' if passed else 'noticed '} {fault.name:24} {seconds:5.0f} s  {fault.file}", flush=True)
            if options.show:
                print(tail, flush=True)
            return not passed

        with ThreadPoolExecutor(options.jobs) as pool:
            results = dict(zip(faults, pool.map(noticed, faults), strict=True))
    return _report(results)


def _copied(target: Path) -> Path:
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@contextmanager
def _one_of(copies: Queue[Path]) -> Iterator[Path]:
    copy = copies.get()
    try:
        yield copy
    finally:
        copies.put(copy)


@contextmanager
def _faulty(copy: Path, fault: Fault) -> Iterator[None]:
    file = copy / fault.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(fault.apply_to(whole), encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(whole, encoding="utf-8")


def _broken_without_a_fault(faults: Sequence[Fault], copies: Queue[Path], jobs: int) -> dict[tuple[str, ...], str]:
    """Sets of tests that fail on the unchanged copy, with the last lines of their output."""
    sets = list(dict.fromkeys((fault.tests, fault.slow) for fault in faults))

    def failing(tests: tuple[str, ...], slow: bool) -> str:
        with _one_of(copies) as copy:
            passed, seconds, tail = _passes(copy, tests, slow=slow)
        print(f"unchanged {seconds:5.0f} s  {' '.join(tests)}", flush=True)
        return "" if passed else tail

    with ThreadPoolExecutor(jobs) as pool:
        tails = list(pool.map(lambda given: failing(*given), sets))
    return {tests: tail for (tests, _), tail in zip(sets, tails, strict=True) if tail}


def _passes(copy: Path, tests: Sequence[str], *, slow: bool) -> tuple[bool, float, str]:
    """(whether all of `tests` pass in `copy`, seconds, the end of their output). A timeout is a failure."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    command += ["-m", "not exhaustive" if slow else QUICK, *tests]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=_environment(copy),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return process.returncode == 0, time.monotonic() - started, output[-1500:]


def _environment(copy: Path) -> Mapping[str, str]:
    """The copy comes before an editable installation of the tree that it was made from. No bytecode is written: Python
    would take a file of the same size and second for unchanged."""
    paths = os.pathsep.join(str(path) for path in (copy, copy / "plugins", copy / "tests"))
    threads = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
    return {**os.environ, **threads, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}


def _report(results: Mapping[Fault, bool]) -> int:
    """Prints the table by area; the exit code."""
    print(f"\n{'area':20} {'faults':>6} {'noticed':>8} {'share':>6}")
    low = False
    for area in [*sorted({fault.area for fault in results}), "all"]:
        found = [noticed for fault, noticed in results.items() if area in (fault.area, "all")]
        share = sum(found) / len(found)
        low = low or share < (ALL if area == "all" else EACH)
        print(f"{area:20} {len(found):6} {sum(found):8} {share:6.0%}")
    if survivors := [fault.name for fault, noticed in results.items() if not noticed]:
        print(f"survived: {', '.join(survivors)}")
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
