"""What TensorBoard itself reads from our event files is what was told, once."""

import time
from pathlib import Path

import numpy as np
import pytest
from logger_runs import CONFIG, events_of, info_of, tell
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups, metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from bumblecore_core import StepEvent
from bumblecore_plugins.loggers.tensorboard import TensorBoard

ALL = {"scalars": 0, "tensors": 0}


def accumulated(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), size_guidance=ALL).Reload()


def read(accumulator: EventAccumulator) -> dict[str, list[tuple]]:
    """Tag → (wall time, step, the value's bits)."""
    return {
        tag: [(one.wall_time, one.step, bits(one.value)) for one in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def expected(events: list[StepEvent]) -> dict[str, list[tuple]]:
    found: dict[str, list[tuple]] = {}
    for event in events:
        for name, value in event.metrics.items():
            found.setdefault(f"{event.split}/{name}", []).append((event.time, event.step, bits(value)))
    return found


def bits(value: float) -> bytes:
    return np.float32(value).tobytes()


def text(accumulator: EventAccumulator, tag: str) -> str:
    [event] = accumulator.Tensors(tag)
    return event.tensor_proto.string_val[0].decode()


def test_tensorboard_reads_what_was_told(tmp_path):
    told = events_of(1, 9)
    tell(TensorBoard(), info_of(tmp_path), told)
    assert read(accumulated(tmp_path / "tensorboard")) == expected(told)


def test_a_value_beyond_float32_is_infinite_there(tmp_path):
    tell(TensorBoard(), info_of(tmp_path), told := [StepEvent(step=1, epoch=1.0, metrics={"loss": 1e300}, time=1.0)])
    with np.errstate(over="ignore"):
        assert read(accumulated(tmp_path / "tensorboard")) == expected(told)


def test_a_resumed_run_has_each_step_once(tmp_path):
    tell(TensorBoard(), info_of(tmp_path), events_of(1, 7), status="interrupted")
    directory = tmp_path / "tensorboard"
    (directory / "notes.txt").write_text("mine")
    (directory / "plugins").mkdir()
    history, again = events_of(1, 5), events_of(6, 9, attempt=1)
    tell(TensorBoard(), info_of(tmp_path, history=history), again)
    assert read(accumulated(directory)) == expected(history + again)
    assert len(list(directory.glob("events.out.tfevents.*"))) == 1
    assert (directory / "notes.txt").read_text() == "mine"
    assert (directory / "plugins").is_dir()


def test_beginning_anew_leaves_nothing_of_an_earlier_run(tmp_path):
    tell(TensorBoard(), info_of(tmp_path), events_of(1, 7))
    tell(TensorBoard(), info_of(tmp_path), again := events_of(1, 2, attempt=1))
    assert read(accumulated(tmp_path / "tensorboard")) == expected(again)


@pytest.mark.parametrize("after", ["evaluation", "save"])
def test_a_killed_run_has_all_up_to_the_last_evaluation_or_save(tmp_path, monkeypatch, after):
    """Events are written by a thread, here onto a slow disk: whoever does not wait for it finds some missing."""
    write = RecordWriter.write

    def slow_write(writer: RecordWriter, data: bytes) -> None:
        time.sleep(0.02)
        write(writer, data)

    monkeypatch.setattr(RecordWriter, "write", slow_write)
    logger = TensorBoard()
    tell(logger, info_of(tmp_path), told := events_of(1, 3 if after == "evaluation" else 5), status=None)
    if after == "save":
        logger.saved(directory=tmp_path / "checkpoint-5")
    assert read(accumulated(tmp_path / "tensorboard")) == expected(told)


def test_another_directory_holds_a_folder_for_each_run(tmp_path):
    for name in ("one", "two"):
        tell(TensorBoard(directory=str(tmp_path / "logs")), info_of(tmp_path / "runs" / name), events_of(1, 2))
    assert read(accumulated(tmp_path / "logs" / "one")) == read(accumulated(tmp_path / "logs" / "two"))
    assert not (tmp_path / "runs" / "one" / "tensorboard").exists()


def test_config_facts_and_features_are_texts(tmp_path):
    tell(TensorBoard(), info_of(tmp_path), events_of(1, 1))
    found = accumulated(tmp_path / "tensorboard")
    assert text(found, "config").startswith("```yaml\nstage:\n  name: sft\n")
    assert text(found, "config").endswith("\n```")
    assert "| rows | 2 |\n| warning | a \\| b |" in text(found, "facts")
    assert "| attention | varlen |" in text(found, "features")


def test_hyperparameters_keep_their_types(tmp_path):
    tell(TensorBoard(), info_of(tmp_path), events_of(1, 1), status="failed")
    found = accumulated(tmp_path / "tensorboard")

    def content(tag: str) -> bytes:
        return found.SummaryMetadata(tag).plugin_data.content

    start = metadata.parse_session_start_info_plugin_data(content(metadata.SESSION_START_INFO_TAG))
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert values == {
        "stage.name": "sft",
        "train.seed": 3.0,
        "train.epochs": 1.5,
        "data.path": "['a.jsonl', 'b.jsonl']",
        "data.packing": True,
        "loggers.0.name": "metrics_json",
        "loggers.1.name": "csv",
    }
    assert start.hparams["data.packing"].WhichOneof("kind") == "bool_value"
    end = metadata.parse_session_end_info_plugin_data(content(metadata.SESSION_END_INFO_TAG))
    assert end.status == api_pb2.STATUS_FAILURE


def test_the_hparams_tab_compares_runs_of_different_options(tmp_path):
    """Asked of TensorBoard's own backend: the columns are those of all runs, the figures the last of each run."""
    last = {}
    for at, (name, optimizer) in enumerate((("one", {"name": "sgd", "momentum": 0.9}), ("two", {"name": "adamw"}))):
        told = events_of(1 + at, 6 + at)
        tell(TensorBoard(), info_of(tmp_path / name, config={**CONFIG, "optimizer": optimizer}), told)
        for event in told:
            last[f"{name}/tensorboard", event.split] = np.float32(event.metrics["loss"])
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    tensorboard = TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path)))
    context = backend_context.Context(tensorboard)
    request = RequestContext()
    runs = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, runs, context.hparams_from_data_provider(request, "", 0)
    )
    differing = {info.name for info in experiment.hparam_infos if info.differs}
    assert {"optimizer.momentum", "optimizer.name", "train.seed"} <= {info.name for info in experiment.hparam_infos}
    assert "optimizer.name" in differing
    wanted = [api_pb2.MetricName(tag=f"{split}/loss", group="") for split in ("train", "eval")]
    assert {name.tag for name in wanted} <= {info.name.tag for info in experiment.metric_infos}
    asked = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
        col_params=[api_pb2.ColParams(metric=name) for name in wanted],
        start_index=0,
        slice_size=10,
        include_metrics=True,
    )
    groups = list_session_groups.Handler(request, context, "", asked).run().session_groups
    found = {
        (session.name, value.name.tag.split("/")[0]): np.float32(value.value)
        for group in groups
        for session in group.sessions
        for value in session.metric_values
        if value.name.tag.endswith("/loss")
    }
    assert found == last
