"""`metrics.csv` gives back every value exactly, whole at any moment."""

import csv
import math
from pathlib import Path

import pytest
from logger_runs import events_of, info_of, tell

from bumblecore_core import StepEvent
from bumblecore_plugins.loggers.csv_file import CsvFile


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def expected(events: list[StepEvent]) -> list[dict[str, float | str]]:
    """The same rows without the csv module: a value where there is a finite one."""
    names = {name for event in events for name in event.metrics}
    found = []
    for event in events:
        row = {"step": event.step, "epoch": event.epoch, "split": event.split, "time": event.time}
        for name in names:
            value = event.metrics.get(name, math.nan)
            row[name] = value if math.isfinite(value) else ""
        found.append(row)
    return found


def parsed(directory: Path) -> list[dict[str, float | str]]:
    return [
        {name: cell if name == "split" or not cell else float(cell) for name, cell in row.items()}
        for row in rows(directory)
    ]


def test_every_value_comes_back(tmp_path):
    told = events_of(1, 9)
    tell(CsvFile(), info_of(tmp_path), told)
    assert parsed(tmp_path) == expected(told)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_columns_come_in_the_order_in_which_figures_first_came(tmp_path):
    tell(CsvFile(), info_of(tmp_path), events_of(1, 4))
    fixed = ["step", "epoch", "split", "time"]
    first = ["loss", "learning_rate", "learning_rate/decay", "grad_norm", "tokens_per_second"]
    assert list(rows(tmp_path)[0]) == [*fixed, *first, "perplexity", "rewards/accuracies"]


def test_a_formula_as_the_name_of_a_figure_is_text(tmp_path):
    event = StepEvent(step=1, epoch=0.5, split="train", time=1.0, metrics={"=cmd()": -1.0, "-2": 1.0})
    later = StepEvent(step=2, epoch=1.0, split="train", time=2.0, metrics={"=cmd()": -2.0, "@x": 3.0})
    tell(CsvFile(), info_of(tmp_path), [event, later])
    first, second = rows(tmp_path)
    assert list(first) == ["step", "epoch", "split", "time", "'=cmd()", "-2", "'@x"]
    assert (first["'=cmd()"], first["-2"], second["'=cmd()"], second["'@x"]) == ("-1.0", "1.0", "-2.0", "3.0")


def test_each_event_is_in_the_file_at_once(tmp_path):
    logger = CsvFile()
    logger.start(info=info_of(tmp_path))
    assert rows(tmp_path) == []
    for at, event in enumerate(told := events_of(1, 5)):
        logger.step(event=event)
        assert parsed(tmp_path) == expected(told[: at + 1])


@pytest.mark.parametrize("torn", ["", "6,0.857,tra", '"6'])
def test_a_killed_run_goes_on_without_repeating_a_step(tmp_path, torn):
    tell(CsvFile(), info_of(tmp_path), events_of(1, 7), status=None)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write(torn)
    history, again = events_of(1, 5), events_of(6, 9, attempt=1)
    tell(CsvFile(), info_of(tmp_path, history=history), again)
    assert parsed(tmp_path) == expected(history + again)


def test_beginning_anew_leaves_nothing_of_an_earlier_run(tmp_path):
    tell(CsvFile(), info_of(tmp_path), events_of(1, 7))
    tell(CsvFile(), info_of(tmp_path), again := events_of(1, 2, attempt=1))
    assert parsed(tmp_path) == expected(again)


def test_a_crash_while_the_header_grows_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    logger = CsvFile()
    tell(logger, info_of(tmp_path), told := events_of(1, 2), status=None)
    before = (tmp_path / "metrics.csv").read_bytes()

    def crash(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="no space left"):
        logger.step(event=StepEvent(step=3, epoch=0.5, metrics={"loss": 1.0, "new": 2.0}))
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert parsed(tmp_path) == expected(told)


def test_a_figure_that_is_called_like_a_column_does_not_replace_it(tmp_path):
    tell(CsvFile(), info_of(tmp_path), [StepEvent(step=1, epoch=0.5, metrics={"loss": 1.0, "step": 7.0}, time=2.0)])
    assert parsed(tmp_path) == [{"step": 1.0, "epoch": 0.5, "split": "train", "time": 2.0, "loss": 1.0}]
