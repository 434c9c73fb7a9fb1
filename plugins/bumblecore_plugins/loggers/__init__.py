"""Built-in loggers."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field

from bumblecore_core import LoggerRecord, Options, hookimpl
from bumblecore_core.toolkit.packages import require_package

_RUN_NAME = "What the run is called there; the output directory's name when not given."


class TensorBoardOptions(Options):
    """Options of `tensorboard`."""

    directory: str | None = Field(
        None,
        description="Log directory to write into instead of the output directory: the run gets a folder of the output "
        "directory's name in it.",
    )


class WandbOptions(Options):
    """Options of `wandb`."""

    project: str = Field("bumblecore", description="Project that the run belongs to.")
    entity: str | None = Field(None, description="User or team; the account's default when not given.")
    run_name: str | None = Field(None, description=_RUN_NAME)
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: record on disk only, for `wandb sync`. WANDB_MODE in the environment wins."
    )
    tags: tuple[str, ...] = Field((), description="Tags of the run.")


class MlflowOptions(Options):
    """Options of `mlflow`."""

    tracking_uri: str | None = Field(
        None,
        description="Tracking server or database; when not given MLFLOW_TRACKING_URI, or else mlflow.db in the output "
        "directory.",
    )
    experiment: str = Field("bumblecore", description="Experiment that the run belongs to; made where it is missing.")
    run_name: str | None = Field(None, description=_RUN_NAME)


def _progress(*, options):
    from bumblecore_plugins.loggers.progress import Progress

    return Progress()


def _log_file(*, options):
    from bumblecore_plugins.loggers.log_file import LogFile

    return LogFile()


def _metrics_json(*, options):
    from bumblecore_plugins.loggers.metrics_json import MetricsJson

    return MetricsJson()


def _csv(*, options):
    from bumblecore_plugins.loggers.csv_file import CsvFile

    return CsvFile()


def _loss_plot(*, options):
    from bumblecore_plugins.loggers.loss_plot import LossPlot

    return LossPlot()


def _tensorboard(*, options: TensorBoardOptions) -> Any:
    from bumblecore_plugins.loggers.tensorboard import TensorBoard

    return TensorBoard(directory=options.directory)


def _wandb(*, options: WandbOptions) -> Any:
    require_package("wandb", extra="wandb", field="loggers.wandb")
    from bumblecore_plugins.loggers.wandb_run import WandbRun

    return WandbRun(options=options)


def _mlflow(*, options: MlflowOptions) -> Any:
    uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    for module in ("mlflow",) if uri else ("mlflow", "sqlalchemy", "alembic"):
        require_package(module, extra="mlflow", field="loggers.mlflow")
    from bumblecore_plugins.loggers.mlflow_run import MlflowRun

    return MlflowRun(tracking_uri=uri, experiment=options.experiment, run_name=options.run_name)


@hookimpl
def bumble_loggers():
    """What a run says: on the console, in files, and to the services that plot and compare runs."""
    return [
        LoggerRecord(name="progress", summary="Progress bar; plain lines where there is no terminal.", build=_progress),
        LoggerRecord(name="log_file", summary="Everything that the run said, in logs/train.log.", build=_log_file),
        LoggerRecord(name="metrics_json", summary="The complete metric history in metrics.json.", build=_metrics_json),
        LoggerRecord(name="csv", summary="The metric history as a table, in metrics.csv.", build=_csv),
        LoggerRecord(
            name="loss_plot",
            summary="Loss curve, learning rate and the stage's figures in training_loss.png.",
            build=_loss_plot,
        ),
        LoggerRecord(
            name="tensorboard",
            summary="Curves, config and hyperparameters for TensorBoard, in tensorboard/.",
            build=_tensorboard,
            options=TensorBoardOptions,
        ),
        LoggerRecord(
            name="wandb",
            summary="A Weights & Biases run (needs the extra wandb).",
            build=_wandb,
            options=WandbOptions,
        ),
        LoggerRecord(
            name="mlflow", summary="An MLflow run (needs the extra mlflow).", build=_mlflow, options=MlflowOptions
        ),
    ]
