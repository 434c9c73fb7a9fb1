"""Built-in loggers."""

from bumblecore_core import LoggerRecord, hookimpl


def _progress(*, options):
    from bumblecore_plugins.loggers.progress import Progress

    return Progress()


def _log_file(*, options):
    from bumblecore_plugins.loggers.log_file import LogFile

    return LogFile()


def _metrics_json(*, options):
    from bumblecore_plugins.loggers.metrics_json import MetricsJson

    return MetricsJson()


@hookimpl
def bumble_loggers():
    """Progress bar, log file and metric history."""
    return [
        LoggerRecord(name="progress", summary="Progress bar; plain lines where there is no terminal.", build=_progress),
        LoggerRecord(name="log_file", summary="Everything that the run said, in logs/train.log.", build=_log_file),
        LoggerRecord(name="metrics_json", summary="The complete metric history in metrics.json.", build=_metrics_json),
    ]
