"""What is read back of a run, and the figures' names."""

from __future__ import annotations

import json
import math

import pytest

from bumblecore_core import RunError, RunInfo, StepEvent
from bumblecore_core.toolkit.figures import FIGURES, depends_on_the_machine, is_core
from bumblecore_core.toolkit.history import read_events, read_run, series, smoothed
from bumblecore_plugins.loggers.metrics_json import MetricsJson
from workbench import write_config

ENTRIES = [
    {"step": 1, "epoch": 0.5, "split": "train", "time": 1000.25, "loss": 2.0, "rewards/chosen": -1.0},
    {"step": 1, "epoch": 0.5, "split": "eval", "time": 1001.0, "loss": 2.5},
    {"step": 2, "epoch": 1.0, "split": "train", "time": 1002.0, "loss": None, "rewards/chosen": -2.0},
]


def run_directory(directory, history=ENTRIES, **documents):
    """An output directory with a config, a history, and `info` and `lock` where they are given."""
    directory.mkdir(exist_ok=True)
    write_config(directory / "run.yaml", stage="sft", optimizer={"name": "adamw", "lr": 3e-4})
    (directory / "metrics.json").write_text(json.dumps(history))
    for name, content in documents.items():
        (directory / f"run.{name}.json").write_text(json.dumps(content))
    return directory


def problem_of(call, *arguments):
    with pytest.raises(RunError) as raised:
        call(*arguments)
    return raised.value.problems[0]


def test_a_run_is_read(tmp_path):
    record = read_run(run_directory(tmp_path / "mine", info={"status": "failed"}, lock={"format": 1}))
    assert (record.name, record.status) == ("mine", "failed")
    assert record.config["optimizer"] == {"name": "adamw", "lr": 3e-4}
    assert (record.info, record.lock) == ({"status": "failed"}, {"format": 1})
    first, evaluated, last = record.events
    assert first == StepEvent(step=1, epoch=0.5, time=1000.25, metrics={"loss": 2.0, "rewards/chosen": -1.0})
    assert (evaluated.split, evaluated.metrics) == ("eval", {"loss": 2.5})
    assert math.isnan(last.metrics["loss"])
    assert record.series("loss") == ([1], [2.0])
    assert record.series("loss", "eval") == ([1], [2.5])
    assert record.series("rewards/chosen") == ([1, 2], [-1.0, -2.0])
    assert record.series("absent") == ([], [])


def test_a_run_that_has_only_begun_is_read(tmp_path):
    record = read_run(run_directory(tmp_path, history=[]))
    assert (record.status, list(record.events), record.info, record.lock) == ("running", [], {}, {})


def test_what_the_logger_wrote_is_read_back(tmp_path):
    events = [
        StepEvent(step=1, epoch=0.25, time=1e9, metrics={"loss": 1 / 3, "learning_rate/no_decay": 1e-5}),
        StepEvent(step=1, epoch=0.25, time=1e9 + 1, metrics={"loss": 0.1}, split="eval"),
        StepEvent(step=2, epoch=0.5, time=1e9 + 2, metrics={"loss": math.inf}),
    ]
    logger = MetricsJson()
    logger.start(
        info=RunInfo(
            output_dir=tmp_path, stage="sft", total_steps=2, first_step=0, config={}, facts=(), features=(), sample=()
        )
    )
    for event in events:
        logger.step(event=event)
    *found, last = read_events(tmp_path / "metrics.json")
    assert found == events[:2]
    assert math.isnan(last.metrics["loss"])


def test_a_directory_without_a_run_is_refused(tmp_path):
    assert problem_of(read_run, tmp_path / "absent").code == "BC061"
    assert problem_of(read_run, tmp_path / ("long" * 100)).code == "BC061"
    directory = run_directory(tmp_path / "run")
    (directory / "metrics.json").unlink()
    problem = problem_of(read_run, directory)
    assert (problem.code, problem.place) == ("BC061", str(directory))
    assert "metrics_json" in problem.fix


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "{}"),
        ("metrics.json", '[{"step": 1}]'),
        ("metrics.json", "[1]"),
        ("metrics.json", '[{"step": 1, "epoch": 0, "split": "train", "loss": "low"}]'),
        ("metrics.json", '[{"step": Infinity, "epoch": 0, "split": "train"}]'),
        ("metrics.json", '[{"step": 1,'),
        ("metrics.json", b"\xff"),
        ("run.yaml", "stage: [sft"),
        ("run.yaml", b"\xff"),
        ("run.yaml", "seen: 2024-13-01"),
        ("run.info.json", "{"),
        ("run.lock.json", b"\xff"),
    ],
)
def test_a_file_that_no_run_wrote_is_named(tmp_path, name, content):
    directory = run_directory(tmp_path)
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    problem = problem_of(read_run, directory)
    assert (problem.code, problem.place) == ("BC064", str(directory / name))


def test_series_leave_out_what_is_not_finite():
    values = [1.0, math.nan, math.inf, -math.inf, 2.0]
    events = [StepEvent(step=at, epoch=0.0, metrics={"loss": value}) for at, value in enumerate(values, 1)]
    assert series(events, "loss") == ([1, 5], [1.0, 2.0])


@pytest.mark.parametrize("span", [None, 7.0])
@pytest.mark.parametrize("count", [0, 1, 2, 40, 333])
def test_smoothing_is_a_weighted_mean(count, span):
    values = [math.sin(3.0 * at) + at / 50 for at in range(count)]
    window = span or max(5, count / 40)
    keep = (window - 1) / (window + 1)
    for at, found in enumerate(smoothed(values, span)):
        weights = [keep ** abs(at - other) for other in range(count)]
        expected = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        assert found == pytest.approx(expected)
    assert len(smoothed(values, span)) == count


def test_smoothing_does_not_lag():
    values = [10.0 - 0.1 * at for at in range(100)]
    assert smoothed(values)[20:80] == pytest.approx(values[20:80], abs=1e-3)


def test_smoothing_keeps_a_constant():
    assert smoothed([3.5] * 100) == pytest.approx([3.5] * 100)


def test_the_cores_figures_are_told_from_others():
    assert all(is_core(name) for name in FIGURES)
    assert is_core("learning_rate/decay")
    assert not any(is_core(name) for name in ("rewards/accuracies", "nll", "learning_rates", "eval_loss"))


def test_timings_and_memory_depend_on_the_machine():
    timed = {name for name in FIGURES if depends_on_the_machine(name)}
    assert timed == {
        "tokens_per_second",
        "supervised_tokens_per_second",
        "steps_per_second",
        "mfu",
        "peak_memory_gb",
        "data_wait",
    }
    assert depends_on_the_machine("seconds")
    assert not depends_on_the_machine("rewards/margins")
