"""The conformance kit accepts good plugins and says what is wrong with bad ones."""

from __future__ import annotations

import sys
import types

import pytest

from bumblecore_core import ChatSample, DataFormatRecord, LossRecord, RowError, TextSample, hookimpl
from bumblecore_core.testing import (
    check_data_format,
    check_import_is_light,
    check_logger,
    check_plugin,
    check_record,
)


class Format:
    def convert(self, *, row):
        if not isinstance(row.get("q"), str) or not isinstance(row.get("a"), str):
            raise RowError(code="BC011", field="q", problem="q or a is no text", fix="Give both")
        return ChatSample(messages=({"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}))


ROWS = [{"q": "a long question", "a": "a long answer"}, {"q": "two", "a": "three", "extra": {"x": ["nested text"]}}]
FORMAT = DataFormatRecord(
    name="qa",
    summary="Q and A.",
    build=lambda *, options: Format(),
    detect=lambda row: "chat" if {"q", "a"} <= row.keys() else None,
)


def test_a_good_format():
    check_data_format(Format(), ROWS, record=FORMAT)


class Careless(Format):
    def convert(self, *, row):
        return TextSample(text=row["q"] + row["a"])


class Leaky(Format):
    def convert(self, *, row):
        try:
            return super().convert(row=row)
        except RowError as error:
            raise RowError(code="BC011", field="q", problem=f"bad row {row}", fix="Mend it") from error


class Greedy(Format):
    def convert(self, *, row):
        sample = super().convert(row=row)
        row.pop("q")
        return sample


class Unknown(Format):
    def convert(self, *, row):
        try:
            return super().convert(row=row)
        except RowError:
            raise RowError(code="E1", field="q", problem="bad", fix="Mend it") from None


class Plain(Format):
    def convert(self, *, row):
        return {"messages": []}


@pytest.mark.parametrize(
    ("format_", "says"),
    [
        (Careless(), "convert raised (KeyError|TypeError), not RowError"),
        (Leaky(), "the row's own text"),
        (Greedy(), "changed the row"),
        (Unknown(), "unknown code E1"),
        (Plain(), "a dict, not a sample"),
    ],
)
def test_a_bad_format(format_, says):
    with pytest.raises(AssertionError, match=says):
        check_data_format(format_, [dict(row) for row in ROWS])


@pytest.mark.parametrize(
    ("detect", "says"),
    [
        (lambda row: "text" if "q" in row else None, "row 0 is detected as 'text'"),
        (lambda row: "chat", "claims the row"),
        (lambda row: "chat" if row["q"] else None, "detect raised KeyError"),
        (lambda row: "chat" if {"q", "a"} <= row.keys() else "none", "detect returned 'none'"),
    ],
)
def test_a_bad_detect(detect, says):
    record = DataFormatRecord(name="qa", summary="Q and A.", build=FORMAT.build, detect=detect)
    with pytest.raises(AssertionError, match=says):
        check_data_format(Format(), ROWS, record=record)


class Either(Format):
    def convert(self, *, row, reads=None):
        sample = super().convert(row=row)
        return TextSample(text=row["a"]) if reads == "text" else sample


EITHER = DataFormatRecord(
    name="qa",
    summary="Q and A.",
    build=FORMAT.build,
    detect=lambda row: ("chat", "text") if {"q", "a"} <= row.keys() else None,
)


def test_a_format_of_two_kinds():
    check_data_format(Either(), ROWS, record=EITHER)


class OnlyChat(Format):
    def convert(self, *, row, reads=None):
        return super().convert(row=row)


def test_a_format_that_does_not_give_a_kind_that_it_detects():
    with pytest.raises(AssertionError, match="detected as text too, but converts to chat"):
        check_data_format(OnlyChat(), ROWS, record=EITHER)


class Logger:
    def __init__(self):
        self.seen = []

    def start(self, *, info):
        self.seen.append("start")

    def step(self, *, event):
        self.seen.append(event.split)

    def saved(self, *, directory):
        self.seen.append("saved")

    def finish(self, *, result):
        self.seen.append(result.status)


def test_a_good_logger(tmp_path):
    logger = Logger()
    check_logger(logger)
    assert logger.seen == ["start", "train", "train", "train", "eval", "saved", "interrupted"]
    check_logger(Logger(), directory=tmp_path / "made")
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("start", r"start\(info=…\) raised"),
        ("step", r"step\(event=…\) raised"),
        ("saved", r"saved\(directory=…\) raised"),
        ("finish", r"finish\(result=…\) raised"),
    ],
)
def test_a_logger_that_raises(method, says):
    logger = Logger()
    setattr(logger, method, lambda **_: 1 / 0)
    with pytest.raises(AssertionError, match=says):
        check_logger(logger)


def module(**attributes) -> types.ModuleType:
    made = types.ModuleType("mine")
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


LOSS = LossRecord(name="x", summary="X.", build=lambda *, options: None, loss_kind="token")


def test_a_good_plugin_gives_its_records():
    assert check_plugin(module(bumble_losses=hookimpl(lambda: [LOSS]))) == [LOSS]
    check_record(LOSS)


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({}, "provides no record"),
        ({"bumble_loses": hookimpl(lambda: [LOSS])}, "BC058 bumble_loses"),
        ({"bumble_losses": hookimpl(lambda: [LOSS, LOSS])}, "BC053 losses.x"),
        ({"bumble_loggers": hookimpl(lambda: [LOSS])}, r"BC055 bumble_loggers\[0\]"),
        ({"bumble_losses": hookimpl(lambda: [LOSS]), "BUMBLECORE_HOOK_API": 7}, "BC059"),
    ],
)
def test_a_bad_plugin(attributes, says):
    with pytest.raises(AssertionError, match=says):
        check_plugin(module(**attributes))


def test_a_bad_record():
    with pytest.raises(AssertionError, match="BC055"):
        check_record("x")


def test_a_heavy_import(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "light_plugin.py").write_text("import bumblecore_core\n")
    (tmp_path / "heavy_plugin.py").write_text("import colorsys\n")
    check_import_is_light("light_plugin")
    with pytest.raises(AssertionError, match="colorsys"):
        check_import_is_light("heavy_plugin", heavy=("colorsys",))
    with pytest.raises(AssertionError, match="does not import"):
        check_import_is_light("no_such_plugin")
    assert "heavy_plugin" not in sys.modules
