"""What an MLflow store holds is what was told, once."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import pytest
from logger_runs import CONFIG, events_of, info_of, tell
from mlflow import MlflowClient

from bumblecore_core import StepEvent
from bumblecore_plugins.loggers.mlflow_run import MlflowRun


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database that MLflow has made, which takes it seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _own_store(monkeypatch, empty_store, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")


def logger(**changes) -> MlflowRun:
    return MlflowRun(**{"tracking_uri": None, "experiment": "bumblecore", "run_name": None, **changes})


def client(output: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")


def run_id(output: Path) -> str:
    return (output / "mlflow_run_id.txt").read_text().strip()


def stored(output: Path, of: str | None = None) -> dict[str, list[tuple]]:
    """Metric → (step, milliseconds, value with all its digits), in the order of steps."""
    store = client(output)
    run = store.get_run(of or run_id(output))
    return {
        name: sorted(
            (one.step, one.timestamp, repr(one.value)) for one in store.get_metric_history(run.info.run_id, name)
        )
        for name in run.data.metrics
    }


def expected(events: list[StepEvent]) -> dict[str, list[tuple]]:
    found: dict[str, list[tuple]] = {}
    for event in events:
        for name, value in event.metrics.items():
            value = sys.float_info.max if value == math.inf else value  # what SQL stores make of it
            entry = (event.step, round(event.time * 1000), repr(value))
            found.setdefault(f"{event.split}/{name}", []).append(entry)
    return found


def test_the_store_holds_what_was_told(tmp_path):
    """A store that was not there before."""
    told = events_of(1, 9)
    tell(logger(), info_of(tmp_path / "run"), told)
    output = tmp_path / "run"
    assert stored(output) == expected(told)
    run = client(output).get_run(run_id(output))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params == {
        "stage.name": "sft",
        "train.seed": "3",
        "train.max_grad_norm": "null",
        "train.epochs": "1.5",
        "data.path": "['a.jsonl', 'b.jsonl']",
        "data.packing": "True",
        "loggers.0.name": "metrics_json",
        "loggers.1.name": "csv",
    }


def test_a_resumed_run_goes_on_in_the_same_run_with_each_step_once(tmp_path):
    tell(logger(), info_of(tmp_path), events_of(1, 7), status="interrupted")
    first = run_id(tmp_path)
    assert client(tmp_path).get_run(first).info.status == "KILLED"
    resumed = logger()
    changed = {**CONFIG, "train": {"seed": 3, "logging_steps": 2}, "data": {"path": "c.jsonl"}}
    resumed.start(info=info_of(tmp_path, history=events_of(1, 5), config=changed))
    assert client(tmp_path).get_run(first).info.status == "RUNNING"
    tell(
        logger(),
        info_of(tmp_path, history=events_of(1, 5), config=changed),
        events_of(6, 9, attempt=1),
        status="failed",
    )
    assert run_id(tmp_path) == first
    assert stored(tmp_path) == expected(events_of(1, 7) + events_of(8, 9, attempt=1))
    run = client(tmp_path).get_run(first)
    assert run.info.status == "FAILED"
    assert run.data.params["data.path"] == "['a.jsonl', 'b.jsonl']", "a parameter stays what it was first"
    assert run.data.params["train.logging_steps"] == "2"


def test_what_a_killed_process_did_not_send_comes_from_the_history(tmp_path):
    tell(logger(), info_of(tmp_path), events_of(1, 5), status=None)
    before = stored(tmp_path)
    assert [step for step, *_ in before["train/loss"]] == [1, 2, 3], "steps are sent with the evaluation after them"
    tell(logger(), info_of(tmp_path, history=events_of(1, 4)), events_of(5, 9, attempt=1))
    assert stored(tmp_path) == expected(events_of(1, 4) + events_of(5, 9, attempt=1))


def test_steps_are_sent_with_a_save_and_after_some_seconds(tmp_path, monkeypatch):
    one = logger()
    one.start(info=info_of(tmp_path))
    told = events_of(1, 2)
    one.step(event=told[0])
    assert stored(tmp_path) == {}
    one.saved(directory=tmp_path / "checkpoint-1")
    assert stored(tmp_path) == expected(told[:1])
    monkeypatch.setattr("bumblecore_plugins.loggers.mlflow_run.SECONDS_BETWEEN_BATCHES", 0.0)
    one.step(event=told[1])
    assert stored(tmp_path) == expected(told)


def test_beginning_anew_is_another_run(tmp_path):
    tell(logger(), info_of(tmp_path), events_of(1, 7))
    first = run_id(tmp_path)
    tell(logger(), info_of(tmp_path), events_of(1, 2, attempt=1))
    assert run_id(tmp_path) != first
    assert stored(tmp_path) == expected(events_of(1, 2, attempt=1))
    assert stored(tmp_path, first) == expected(events_of(1, 7))


@pytest.mark.parametrize("gone", ["unknown", "deleted"])
def test_a_run_that_the_store_lost_is_made_again_whole(tmp_path, gone):
    tell(logger(), info_of(tmp_path), events_of(1, 5), status="interrupted")
    first = run_id(tmp_path)
    if gone == "deleted":
        client(tmp_path).delete_run(first)
    else:
        (tmp_path / "mlflow_run_id.txt").write_text("0" * 32)
    tell(logger(), info_of(tmp_path, history=events_of(1, 4)), events_of(5, 6, attempt=1))
    assert run_id(tmp_path) not in (first, "0" * 32)
    assert stored(tmp_path) == expected(events_of(1, 4) + events_of(5, 6, attempt=1))


def test_a_history_of_many_batches_and_a_config_of_many_keys(tmp_path, monkeypatch):
    history = events_of(1, 250)
    config = {"many": {f"key{at}": at for at in range(250)}, "long": "x" * 7000, "odd@name": ""}
    events = [StepEvent(step=251, epoch=1.0, metrics={"loss": 1.0, "acc@1": 0.5}, time=3.0)]
    sent, log_batch = [], MlflowClient.log_batch

    def seen(store: MlflowClient, of: str, metrics=(), params=()) -> None:
        sent.append((metrics, params))
        log_batch(store, of, metrics=metrics, params=params)

    monkeypatch.setattr(MlflowClient, "log_batch", seen)
    tell(logger(run_name="mine"), info_of(tmp_path, history=history, config=config), events)
    renamed = expected([*history, StepEvent(step=251, epoch=1.0, metrics={"loss": 1.0, "acc_1": 0.5}, time=3.0)])
    assert stored(tmp_path) == renamed
    assert all(len(metrics) <= 1000 and len(params) <= 100 for metrics, params in sent), "what a server takes"
    whole = [{(metric.key.split("/")[0], metric.step) for metric in metrics} for metrics, _ in sent]
    assert sum(map(len, whole)) == len(history) + 1, "no event is cut in two"
    run = client(tmp_path).get_run(run_id(tmp_path))
    assert run.info.run_name == "mine"
    assert {f"many.key{at}": str(at) for at in range(250)}.items() <= run.data.params.items()
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["long"].endswith("x…")
    assert run.data.params["odd_name"] == ""


def test_runs_of_one_store_are_in_one_experiment(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for name in ("one", "two"):
        tell(logger(tracking_uri=uri, experiment="e"), info_of(tmp_path / name), events_of(1, 1))
        assert not (tmp_path / name / "mlflow.db").exists()
    store = MlflowClient(tracking_uri=uri)
    experiment = store.get_experiment_by_name("e")
    assert {run.info.run_name for run in store.search_runs([experiment.experiment_id])} == {"one", "two"}
