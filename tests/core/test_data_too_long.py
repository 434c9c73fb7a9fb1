"""`data.too_long`: rows of which a stage would cut something, and rows that do not fit at all."""

from __future__ import annotations

import pytest
from data_stages import prepare, refused, summary, tokens

from bumblecore_core.errors import RowError
from bumblecore_core.run.data.encode import LengthPolicy
from bumblecore_core.values import Dropped, TokenExample

CUT_AT_END, CUT_AFTER_TURN = "cut at the very end", "cut"
"""Of `max_length=8` tokens or more, and of fewer: a stage that cuts after a whole turn leaves fewer."""


def warnings(store) -> list[str]:
    return [line for line in store.report.warning_lines() if line.startswith("BC066")]


def test_truncate_keeps_cut_rows_and_drops_those_of_which_nothing_fits(data):
    store = prepare(data(["cut", "long", *["a"] * 38]))
    assert tokens(store)[:2] == ["cut", "a"]
    assert (store.report.truncated, [(row.code, row.count) for row in store.report.dropped]) == (1, [("BC028", 1)])


def test_many_cut_examples_are_a_warning_with_numbers(data):
    store = prepare(data([CUT_AT_END] * 3 + [CUT_AFTER_TURN] * 3 + ["a"] * 94), max_length=8)
    assert warnings(store) == [
        "BC066 6 of 100 examples (6%) are cut at data.max_length, 3 of them lose the end of their last turn; "
        "data.too_long: drop leaves such rows out"
    ]
    assert warnings(prepare("a.jsonl", max_length=8)) == warnings(store)  # of reused shards too
    assert warnings(prepare(data([CUT_AT_END] * 5 + ["a"] * 95), max_length=8)) == []


def test_drop_leaves_out_and_counts_every_row_of_which_something_would_be_cut(data):
    store = prepare(data(["cut"] * 3 + ["long"] * 3 + ["a", "b"]), too_long="drop")
    assert tokens(store) == ["a", "b"]
    assert (store.report.truncated, store.report.rows) == (0, 8)
    assert {(row.reason, row.count, row.places[0]) for row in store.report.dropped} == {
        ("the row does not fit data.max_length", 3, "a.jsonl:1"),
        ("the prompt does not fit", 3, "a.jsonl:4"),
    }


def test_drop_is_not_an_error_when_strict(data):
    assert tokens(prepare(data(["cut", "long", "a"]), too_long="drop", strict=True)) == ["a"]
    assert summary(refused(data(["cut", "drop", "a"]), too_long="drop", strict=True)) == [("BC015", "a.jsonl:2")]


def test_error_names_the_rows(data):
    (problem,) = refused(data(["a", "cut", "long"]), too_long="error").problems
    assert (problem.code, problem.place) == ("BC028", "a.jsonl:2")
    assert "2 of 3 rows read: a.jsonl:2, a.jsonl:3" in problem.problem
    assert "data.too_long" in problem.fix


def test_rows_that_are_an_error_can_be_skipped(data):
    store = prepare(data(["a", "cut", "long"]), too_long="error", on_bad_row="skip", max_bad_share=0.7)
    assert tokens(store) == ["a"]
    assert [(row.code, row.count) for row in store.report.skipped] == [("BC028", 2)]


def test_shards_of_another_policy_are_not_reused(data):
    assert len(prepare(data(["cut", "a"]))) == 2
    assert len(prepare("a.jsonl", too_long="drop")) == 1
    assert summary(refused("a.jsonl", too_long="error")) == [("BC028", "a.jsonl:1")]


def test_more_than_five_percent_without_room_name_the_option(data):
    error = refused(data(["long"] * 6 + ["a"] * 94))
    assert "data.too_long to drop" in error.problems[0].fix
    assert len(prepare("a.jsonl", too_long="drop")) == 94


WHOLE = TokenExample(columns={}, length=3, count=1)
CUT = TokenExample(columns={}, length=3, count=1, truncated=True)
EMPTY = Dropped(code="BC015", reason="an assistant reply is empty")
BROKEN = RowError(code="BC013", field="", problem="x", fix="y")


@pytest.mark.parametrize("too_long", ["truncate", "drop", "error"])
@pytest.mark.parametrize("result", [WHOLE, [WHOLE, WHOLE], EMPTY, BROKEN, "no result", 7], ids=str)
def test_results_that_fit_or_are_none_stay_as_they_are(result, too_long):
    assert LengthPolicy(max_length=8, too_long=too_long).apply(result) is result


@pytest.mark.parametrize("result", [CUT, [CUT], (WHOLE, CUT)], ids=["one", "of one", "of two"])
def test_a_row_goes_with_all_of_its_examples(result):
    assert LengthPolicy(max_length=8).apply(result) is result
    assert LengthPolicy(max_length=8, too_long="drop").apply(result).code == "BC028"
    assert LengthPolicy(max_length=8, too_long="error").apply(result).problem.code == "BC028"
