"""Rows that can give several kinds of sample: the stage's kind decides, and formats that know one kind still work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from data_stages import RECORDS, prepare, refused, tokens

from bumblecore_core.errors import PluginError
from bumblecore_core.records import DataFormatRecord
from bumblecore_core.run.data.detect import kinds_of, takes_reads
from bumblecore_core.values import ChatSample, TextSample


def several(convert, kinds=("chat", "text")):
    return DataFormatRecord(
        name="several",
        summary="x",
        build=lambda *, options: SimpleNamespace(convert=convert),
        detect=lambda row: kinds if "both" in row else None,
    )


def by_kind(*, row, reads=None):
    if reads == "text":
        return TextSample(text=row["both"])
    return ChatSample(messages=({"role": "assistant", "content": row["both"] + " said"},))


@pytest.mark.parametrize(("reads", "found"), [("text", "hello"), ("chat", "hello said")])
@pytest.mark.parametrize("kinds", [("chat", "text"), ["text", "chat"]])
def test_the_stage_decides_what_becomes_of_a_row(data, reads, found, kinds):
    store = prepare(data([{"both": "hello"}]), reads=reads, records={"several": several(by_kind, kinds)})
    assert tokens(store) == [found]


def test_a_stage_that_reads_neither_kind_is_refused(data):
    error = refused(data([{"both": "a"}]), reads="preference", records={"several": several(by_kind)})
    assert [problem.code for problem in error.problems] == ["BC063"]
    assert "gives chat samples" in str(error)


def test_a_format_that_can_give_what_the_stage_reads_is_preferred(data):
    records = {"several": several(by_kind), "chat": RECORDS["chat"]}
    path = data([{"both": "hello", "chat": "other"}])
    assert tokens(prepare(path, reads="text", records=records)) == ["hello"]
    assert [problem.code for problem in refused(path, reads="chat", records=records).problems] == ["BC062"]


def test_a_format_without_the_keyword_is_not_passed_it(data):
    plain = several(lambda *, row: TextSample(text=row["both"]))
    assert tokens(prepare(data([{"both": "hello"}]), records={"several": plain})) == ["hello"]


@pytest.mark.parametrize("kinds", [("text", "poem"), ("text", None), {"text": 1}, 7])
def test_detect_returns_kinds_only(data, kinds):
    with pytest.raises(PluginError, match="from detect, not a kind of sample"):
        prepare(data([{"both": "a"}]), records={"several": several(by_kind, kinds)})


def test_kinds_of_what_detect_returned():
    assert kinds_of(None) == kinds_of(()) == ()
    assert kinds_of("text") == ("text",)
    assert kinds_of(["chat", "feedback"]) == ("chat", "feedback")


def test_reads_is_a_parameter_by_name():
    assert takes_reads(by_kind)
    assert not takes_reads(lambda *, row: None)
    assert not takes_reads(lambda **anything: None)
