"""TensorBoard event files: curves, the config as text, and hyperparameters to compare runs by."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import text

from bumblecore_core import RunInfo, RunResult, StepEvent
from bumblecore_core.toolkit.summary import flat_config

FLUSH_SECONDS = 30
QUEUE = 1000
"""Events that may wait for the writing thread before `step` waits for it."""
STATUS = {
    "complete": api_pb2.STATUS_SUCCESS,
    "interrupted": api_pb2.STATUS_UNKNOWN,
    "failed": api_pb2.STATUS_FAILURE,
}


class TensorBoard:
    """Writes one event file into `output_dir/tensorboard`, or into `directory/NAME` with the output directory's name:
    `tensorboard --logdir` of the parent shows each run as one entry.

    Scalars `train/NAME` and `eval/NAME` at the events' own steps and times; a value that is not finite is written as it
    is. The texts `config`, `facts` and `features`. For the HPARAMS tab the flat config, without what is not set. No
    description of the whole experiment is written there: TensorBoard would take the columns of one run for all of them,
    while without it the columns are those of any run, and every scalar can be compared.

    Event files cannot be cut, so a run that is resumed deletes those of its directory and writes its whole history
    again. A TensorBoard that is open meanwhile follows (with `--load_fast false` it has to be restarted). The file is
    flushed with each evaluation and each save, else about every 30 seconds.
    """

    def __init__(self, *, directory: str | None = None) -> None:
        self._elsewhere = directory

    def start(self, *, info: RunInfo) -> None:
        directory = info.output_dir / "tensorboard"
        if self._elsewhere is not None:
            directory = Path(self._elsewhere) / info.output_dir.resolve().name
        directory.mkdir(parents=True, exist_ok=True)
        for earlier in directory.glob("events.out.tfevents.*"):
            earlier.unlink()
        _say_nothing_of_the_writing_thread()
        self._writer = SummaryWriter(str(directory), max_queue=QUEUE, flush_secs=FLUSH_SECONDS)
        config = yaml.safe_dump(dict(info.config), sort_keys=False, allow_unicode=True)
        self._write(_text("config", f"```yaml\n{config}```"))
        self._write(_text("facts", _table(info.facts)))
        self._write(_text("features", _table(info.features)))
        self._write(_session_start(str(info.output_dir), flat_config(info.config)))
        for event in info.history:
            self._add(event)
        self._writer.flush()

    def step(self, *, event: StepEvent) -> None:
        self._add(event)
        if event.split == "eval":
            self._writer.flush()

    def saved(self, *, directory) -> None:
        self._writer.flush()

    def finish(self, *, result: RunResult) -> None:
        end = SessionEndInfo(status=STATUS[result.status], end_time_secs=time.time())
        self._write(_session(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)))
        self._writer.flush()  # raises what the writing thread met, which close() does not
        self._writer.close()

    def _add(self, event: StepEvent) -> None:
        """One entry of the file for all figures of an event."""
        figures = [
            Summary.Value(tag=f"{event.split}/{name}", simple_value=value) for name, value in event.metrics.items()
        ]
        self._writer.file_writer.add_summary(Summary(value=figures), event.step, event.time)

    def _write(self, summary: Summary) -> None:
        self._writer.file_writer.add_summary(summary, 0)


def _say_nothing_of_the_writing_thread() -> None:
    """An error of the disk in TensorBoard's thread is raised by the next call: no traceback of the thread too."""
    before = threading.excepthook
    if getattr(before, "silent_on_disk_errors", False):
        return

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            before(failed)

    hook.silent_on_disk_errors = True
    threading.excepthook = hook


def _text(tag: str, markdown: str) -> Summary:
    summary = text(tag, markdown)
    summary.value[0].tag = tag  # without the suffix that torch adds
    return summary


def _table(pairs: Sequence[tuple[str, str]]) -> str:
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in map(str, pair)] for pair in pairs]
    return "\n".join(f"| {name} | {value} |" for name, value in [("", ""), ("---", "---"), *rows])


def _session_start(name: str, config: Sequence[tuple[str, Any]]) -> Summary:
    """The config as TensorBoard's hyperparameters: numbers, booleans and strings as such, lists as text."""
    start = SessionStartInfo(group_name=name, start_time_secs=time.time())
    for key, value in config:
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[key].number_value = value
        elif value is not None:
            start.hparams[key].string_value = str(value)
    return _session(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))


def _session(tag: str, content: HParamsPluginData) -> Summary:
    described = metadata.create_summary_metadata(content)
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])
