"""Every built-in logger on a real run that is killed, resumed, and done by two ranks: all of them tell the same."""

import csv
import json
import math
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bumblecore_core.run.checkpoint.compare import history_differences
from bumblecore_core.toolkit.history import EVENT_KEYS, read_run
from forked_ranks import run_ranks
from resume_runs import ROWS_IN_A_STEP, bench_of, settings_of
from workbench import write_config

LOGGERS = ["progress", "log_file", "metrics_json", "tensorboard", "csv", "loss_plot"]
STEPS = 14
KILLER = """
import os, signal
from bumblecore_core import LoggerRecord, hookimpl

class KillAt:
    def start(self, *, info): self.first = info.first_step
    def step(self, *, event):
        if event.step == 8 and self.first == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def saved(self, *, directory): pass
    def finish(self, *, result): pass

@hookimpl
def bumble_loggers():
    return [LoggerRecord(name="kill_at", summary="Kills at step 8.", build=lambda *, options: KillAt())]
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = bench_of(tmp_path_factory.mktemp("loggers"))
    (bench / "kill_at.py").write_text(KILLER)
    return bench


@dataclass
class Launched:
    codes: list[int]
    stdout: str
    stderr: str


def launch(bench: Path, name: str, ranks: int, loggers: list[str]) -> Launched:
    settings = settings_of(bench, "sft", name, checkpoint={"save_steps": 3, "background": False})
    settings["train"] |= {"max_steps": STEPS, "micro_batch_size": ROWS_IN_A_STEP // (3 * ranks)}
    settings["loggers"] = loggers
    config = write_config(bench / f"{name}.yaml", **settings)
    (bench / "bumble.py").write_text("import sys\nfrom bumblecore_core.cli import main\nmain(sys.argv[1:])\n")
    script, codes, arguments = bench / "bumble.py", bench / "codes.json", ("-p", "kill_at", "run", str(config))
    done = run_ranks(script, *arguments, ranks=ranks, timeout=600, cwd=bench, codes=codes)
    return Launched(json.loads(codes.read_text()), done.stdout, done.stderr)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two ranks"])
def run(request, bench):
    """(directory of a run that was killed at step 8 and resumed at step 6, of one left alone, what the second part
    printed)."""
    name = "two" if request.param == 2 else "one"
    killed = launch(bench, name, request.param, [*LOGGERS, "kill_at"])
    assert -signal.SIGKILL in killed.codes
    assert 0 not in killed.codes
    assert json.loads((bench / name / "metrics.json").read_text())[-1]["step"] == 8  # valid although it was killed
    resumed = launch(bench, name, request.param, LOGGERS)
    assert set(resumed.codes) == {0}, resumed.stderr[-3000:]
    whole = launch(bench, f"{name}-whole", request.param, ["metrics_json"])
    assert set(whole.codes) == {0}, whole.stderr[-3000:]
    return bench / name, bench / f"{name}-whole", resumed


def entries(directory: Path) -> list[dict]:
    return json.loads((directory / "metrics.json").read_text())


def test_history_holds_each_step_once_and_equals_that_of_a_run_left_alone(run):
    steps = [(entry["step"], entry["split"]) for entry in entries(run[0])]
    assert Counter(steps).most_common(1)[0][1] == 1
    assert [step for step, split in steps if split == "train"] == list(range(1, STEPS + 1))
    assert [step for step, split in steps if split == "eval"] == [3, 6, 9, 12, 14]
    assert history_differences(run[0] / "metrics.json", run[1] / "metrics.json") == []


def test_tensorboards_own_reader_agrees_with_the_history_value_by_value(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (run[0] / "tensorboard").glob("events.out.tfevents.*")  # one writer, one file
    reader = EventAccumulator(str(events.parent), size_guidance={"scalars": 0})
    reader.Reload()
    expected: dict[str, list] = {}
    for entry in entries(run[0]):
        for name in entry.keys() - set(EVENT_KEYS):
            value = np.float32(math.nan if entry[name] is None else entry[name])
            expected.setdefault(f"{entry['split']}/{name}", []).append((entry["step"], value))
    found = {
        tag: [(one.step, np.float32(one.value)) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }
    assert found == expected
    assert len(found) > 12
    times = [one.wall_time for one in reader.Scalars("train/loss")]
    written = [entry["time"] for entry in entries(run[0]) if entry["split"] == "train"]
    assert times == pytest.approx(written, abs=2e-3)


def test_the_table_agrees_with_the_history_value_by_value(run):
    with (run[0] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(entries(run[0]))
    for row, entry in zip(rows, entries(run[0]), strict=True):
        assert (int(row["step"]), row["split"]) == (entry["step"], entry["split"])
        for name in entry.keys() - set(EVENT_KEYS):
            assert row[name] == ("" if entry[name] is None else repr(float(entry[name]))), name


def test_the_log_tells_of_both_parts_and_of_the_end(run):
    log = (run[0] / "logs" / "train.log").read_text()
    for step in range(1, STEPS + 1):
        assert log.count(f"train step={step} ") == (2 if step in (7, 8) else 1), step  # it tells what was done
    assert log.count("resumed") >= 1
    assert log.count(f"complete after {STEPS} steps") == 1


def test_the_plot_is_there_and_the_run_says_how_it_ended(run):
    assert (run[0] / "training_loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    record = read_run(run[0])
    assert record.status == "complete"
    assert record.info["steps"] == STEPS
    assert record.info["summary"]["loss"] == entries(run[0])[-2]["loss"]
    assert record.info["features"]


def test_one_rank_speaks(run):
    assert run[2].stderr.count(f"step {STEPS}/{STEPS} ") == 1
    assert run[2].stdout.count("complete: ") == 1
    assert "is dropped" not in run[2].stderr
    assert "training_loss.png" in run[2].stdout
    assert "tensorboard" in run[2].stdout


def test_figures_of_the_machine_are_sensible(run):
    for entry in entries(run[0]):
        if entry["split"] == "train":
            assert 0 < entry["mfu"] < 1
            assert 0 <= entry["data_wait"] < 1
            assert 0.05 < entry["peak_memory_gb"] < 50
            assert entry["tokens_per_second"] >= entry["supervised_tokens_per_second"] > 0
    tokens = [entry["tokens"] for entry in entries(run[0]) if entry["split"] == "train"]
    assert tokens == sorted(tokens)
