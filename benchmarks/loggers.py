"""What logging costs: the same training without loggers, and with every built-in one reporting at every step.

    python benchmarks/loggers.py --parameters-in-millions 30 --steps 40

Prints, for each logger, milliseconds a step as `bumble run --profile-plugins` tells them and their share of a step's
time; and the median time of a step with and without loggers, the runs in alternation (which is noisier).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from saving import prepare

LOGGERS = ["progress", "log_file", "metrics_json", "csv", "tensorboard", "loss_plot", "wandb", "mlflow"]
ROW = re.compile(r"^logger (\S+) +step +(\d+) +([\d.]+) ", re.MULTILINE)
CLOCK = """
import json, time
from itertools import pairwise
from pathlib import Path
from bumblecore_core import LoggerRecord, hookimpl


class Clock:
    def start(self, *, info):
        self.path, self.times = Path(info.output_dir) / "times.json", []

    def step(self, *, event):
        self.times.append(time.perf_counter())

    def saved(self, *, directory):
        pass

    def finish(self, *, result):
        self.path.write_text(json.dumps(self.times))


@hookimpl
def bumble_loggers():
    return [LoggerRecord(name="clock", summary="Notes when each step was reported.", build=lambda *, options: Clock())]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters-in-millions", type=float, default=30.0, help="about how large a model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each sort; they alternate")
    parser.add_argument("--loggers", default=",".join(LOGGERS), help="which to measure")
    args = parser.parse_args()
    names = args.loggers.split(",")
    with tempfile.TemporaryDirectory(prefix="bumble-loggers-") as place:
        config = prepare(Path(place), args)
        (Path(place) / "clock_logger.py").write_text(CLOCK)
        without, with_them, spent = [], [], {}
        for _ in range(args.rounds):
            run(config, [])
            without += step_seconds(config)
            for name, calls, seconds in ROW.findall(run(config, names)):
                spent.setdefault(name, []).append(1000 * float(seconds) / int(calls))
            with_them += step_seconds(config)
    step = 1000 * median(without)
    print(f"a step without loggers: {step:.1f} ms; with them: {1000 * median(with_them):.1f} ms")
    for name in names:
        print(f"{name:<14}{median(spent[name]):>8.3f} ms a step{median(spent[name]) / step:>8.2%}")
    total = sum(median(spent[name]) for name in names)
    print(f"{'together':<14}{total:>8.3f} ms a step{total / step:>8.2%}")


def run(config: Path, loggers: list[str]) -> str:
    """What a run with these loggers, and one that notes the time, prints."""
    command = [sys.executable, "-m", "bumblecore_core", "-p", "clock_logger", "run", str(config), "--overwrite"]
    command += ["--profile-plugins", "--set", f"loggers={json.dumps([*loggers, 'clock'])}"]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=config.parent, env=environment)
    if done.returncode or "is dropped" in done.stderr:
        sys.exit(done.stderr)
    return done.stdout


def step_seconds(config: Path) -> list[float]:
    """Seconds between the reports of one step and the next; the first steps warm up."""
    times = json.loads((config.parent / "out" / "times.json").read_text())
    return [after - before for before, after in pairwise(times[2:])]


if __name__ == "__main__":
    main()
