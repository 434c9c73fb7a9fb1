"""An MLflow run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
)

from bumblecore_core import RunInfo, RunResult, StepEvent
from bumblecore_core.toolkit.summary import as_text, flat_config
from bumblecore_plugins.loggers.run_id import keep_id, kept_id

SECONDS_BETWEEN_BATCHES = 5.0
STATUS = {"complete": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")


class MlflowRun:
    """Metrics `train/NAME` and `eval/NAME` with step and time; the flat config as parameters, long values cut.

    Without a tracking URI everything is in `output_dir/mlflow.db` (SQLite), for `mlflow ui --backend-store-uri
    sqlite:///…/mlflow.db`. Not in files: MLflow has given up its file store, which cannot hold both `learning_rate` and
    `learning_rate/decay`. SQL stores hold NaN as it is, and infinity as the largest float64.

    Events are gathered and sent together, at most every 5 seconds and with each evaluation, save and end, since a
    request or a database commit takes longer than a fast step may cost. An event is sent whole or not at all.

    `output_dir/mlflow_run_id.txt` keeps the run's id, and a run that is resumed goes on in the same MLflow run: events
    that it has already are left out, events that the interrupted process did not send any more are sent from the
    history, and parameters stay what they were first, since MLflow cannot change them. A run that begins anew is
    another MLflow run.
    """

    def __init__(self, *, tracking_uri: str | None, experiment: str, run_name: str | None) -> None:
        self._uri, self._experiment, self._run_name = tracking_uri, experiment, run_name
        self._waiting: list[StepEvent] = []
        self._sent: dict[str, set[int]] = {"train": set(), "eval": set()}
        self._last = time.monotonic()

    def start(self, *, info: RunInfo) -> None:
        directory = info.output_dir.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=self._uri or f"sqlite:///{directory / 'mlflow.db'}")
        path = directory / "mlflow_run_id.txt"
        kept = kept_id(path, info)
        run = (self._find(kept) if kept else None) or self._create(directory)
        self._run_id = run.info.run_id
        keep_id(path, self._run_id)
        self._log_params(info, run)
        self._waiting += info.history
        self._send()

    def step(self, *, event: StepEvent) -> None:
        self._waiting.append(event)
        if event.split == "eval" or time.monotonic() - self._last >= SECONDS_BETWEEN_BATCHES:
            self._send()

    def saved(self, *, directory) -> None:
        self._send()

    def finish(self, *, result: RunResult) -> None:
        self._send()
        self._client.set_terminated(self._run_id, status=STATUS[result.status])

    def _find(self, run_id: str) -> Run | None:
        """The run to go on in, with what it has already in `_sent`; None where the store has none of that id."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException:
            return None
        if run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(run_id, status="RUNNING")
        for split, steps in self._sent.items():
            # Every event has a loss, and is sent whole.
            steps.update(metric.step for metric in self._client.get_metric_history(run_id, f"{split}/loss"))
        return run

    def _create(self, directory: Path) -> Run:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            artifacts = None if self._uri else (directory / "mlartifacts").as_uri()
            experiment_id = self._client.create_experiment(self._experiment, artifact_location=artifacts)
        tags = {"output_dir": str(directory)}
        return self._client.create_run(experiment_id, run_name=self._run_name or directory.name, tags=tags)

    def _log_params(self, info: RunInfo, run: Run) -> None:
        named = {_name(key): _cut(as_text(value)) for key, value in flat_config(info.config)}
        new = [Param(key, value) for key, value in named.items() if key not in run.data.params]
        for at in range(0, len(new), MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self._run_id, params=new[at : at + MAX_PARAMS_TAGS_PER_BATCH])

    def _send(self) -> None:
        for metrics in _batches([event for event in self._waiting if event.step not in self._sent[event.split]]):
            self._client.log_batch(self._run_id, metrics=metrics)
        self._waiting.clear()
        self._last = time.monotonic()


def _batches(events: Sequence[StepEvent]) -> Iterator[list[Metric]]:
    """The events' metrics in batches of a size that MLflow takes, none of which ends within an event."""
    batch: list[Metric] = []
    for event in events:
        metrics = [
            Metric(_name(f"{event.split}/{name}"), value, round(event.time * 1000), event.step)
            for name, value in event.metrics.items()
        ]
        if len(batch) + len(metrics) > MAX_METRICS_PER_BATCH:
            yield batch
            batch = []
        batch += metrics
    if batch:
        yield batch


def _name(name: str) -> str:
    return NOT_IN_NAMES.sub("_", name)


def _cut(value: str) -> str:
    return value if len(value) <= MAX_PARAM_VAL_LENGTH else value[: MAX_PARAM_VAL_LENGTH - 1] + "…"
