"""From files to shards: what is counted, and what is refused."""

from __future__ import annotations

import pytest
from data_stages import RECORDS, ByteStage, prepare, record, refused, summary, tokens

from bumblecore_core.errors import PluginError
from bumblecore_core.run.data import bad_rows
from bumblecore_core.values import FeedbackSample, TokenExample


def test_examples_places_and_counts(data):
    data(["one", "split a bc", "cut it", "warn me"])
    store = prepare("a.jsonl", {"path": data(["two"], "b.jsonl"), "weight": 2.0})
    assert tokens(store) == ["one", "a", "bc", "cut it", "warn me", "two"]
    assert [store.locate(i) for i in range(6)] == [f"a.jsonl:{n}" for n in (1, 2, 2, 3, 4)] + ["b.jsonl:1"]
    assert store.sources.tolist() == [0, 0, 0, 0, 0, 1]
    assert (store.files, store.weights) == (("a.jsonl", "b.jsonl"), (1.0, 2.0))
    assert store.example(3)["spans"].tolist() == [6]
    report = store.report
    assert (report.rows, report.examples, report.tokens, report.supervised) == (5, 6, 22, 16)
    assert (report.truncated, report.warnings, report.formats) == (1, {"BC025": 1}, ("text", "text"))


def test_dropped_rows_are_counted_with_their_first_places(data):
    store = prepare(data(["drop"] * 5 + ["kept"] * 95))
    (dropped,) = store.report.dropped
    assert (dropped.code, dropped.count, dropped.places) == ("BC015", 5, ("a.jsonl:1", "a.jsonl:2", "a.jsonl:3"))
    assert prepare("a.jsonl").report.dropped == store.report.dropped


def test_bc009_blank_lines_are_counted(data, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n\n{"text": "b"}\n')
    assert prepare("a.jsonl").report.warnings == {"BC009": 2}


def test_strict_makes_errors_of_dropped_rows(data):
    assert summary(refused(data(["a", "drop"]), strict=True)) == [("BC015", "a.jsonl:2")]


def test_row_errors_get_their_place_in_the_order_of_lines(data):
    error = refused(data(["a", "bad", {"other": 1}, "bad"]))
    assert summary(error) == [("BC014", "a.jsonl:2"), ("BC007", "a.jsonl:3")]
    assert str(error).splitlines()[0] == (
        "BC014 a.jsonl:2 text: it is bad (2 of 4 rows read: a.jsonl:2, a.jsonl:4). make it good."
    )


def test_different_problems_are_counted_and_reading_stops(data, tmp_path):
    (tmp_path / "a.jsonl").write_text("oops\n" * 250)
    error = refused("a.jsonl")
    assert error.total == 250
    assert len(str(error).splitlines()) == 21
    assert str(error).endswith("… and 230 more.")
    (tmp_path / "a.jsonl").write_text("oops\n" * 100_000)
    assert refused("a.jsonl").total < 1100


def test_a_file_of_equal_bad_rows_is_not_read_to_its_end(data, monkeypatch):
    monkeypatch.setattr(bad_rows, "READ_ON_ROWS", 1000)
    (problem,) = refused(data(["bad"] * 5000)).problems
    assert "all 1,536 rows read: a.jsonl:1, a.jsonl:2, a.jsonl:3, …" in problem.problem


def test_nothing_is_kept_of_a_failed_build(data, tmp_path):
    refused(data(["a", "bad"]), cache_dir=str(tmp_path / "cache"))
    assert [path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]


def test_bc006_names_both_schemas_once(data):
    error = refused(data(["a", {"text": "b", "input": ""}, {"chat": "c"}, {"chat": "d"}]))
    assert summary(error) == [("BC006", "a.jsonl:3")]
    assert "2 of 4 rows read: a.jsonl:3, a.jsonl:4" in str(error)
    for part in ("text (text) from line 1", "chat (chat) from line 3", "keys text", "keys chat"):
        assert part in str(error)


def test_bc006_where_the_kind_changes_within_a_format(data):
    both = {"text": RECORDS["text"], "chat": RECORDS["chat"]}
    changing = record("text")

    class Changing:
        def convert(self, *, row):
            return RECORDS[row["kind"]].build(options=None).convert(row={row["kind"]: row["text"]})

    object.__setattr__(changing, "build", lambda *, options: Changing())
    path = data([{"text": "a", "kind": "text"}, {"text": "b", "kind": "chat"}])
    assert summary(refused(path, records={**both, "text": changing})) == [("BC006", "a.jsonl:2")]


def test_bc008_lists_what_became_of_every_row(data):
    error = refused(data(["drop"] * 4))
    assert [problem.code for problem in error.problems] == ["BC008"]
    assert "4 rows" in str(error)
    assert "BC015 an assistant reply is empty" in str(error)


def test_bc008_an_empty_file_among_others(data, tmp_path):
    (tmp_path / "b.jsonl").touch()
    assert summary(refused(data(["a"]), "b.jsonl")) == [("BC008", "b.jsonl")]


def test_bc028_above_five_percent(data):
    assert len(prepare(data(["long"] * 5 + ["a"] * 95))) == 95
    error = refused(data(["long"] * 6 + ["a"] * 94))
    assert [problem.code for problem in error.problems] == ["BC028"]
    assert "6 of 100 rows" in str(error)


def test_bc062_unknown_format_lists_keys_and_needs(data):
    error = refused(data([{"q": 1, "a": 2}] * 3), data([{"z": 1}], "b.jsonl"))
    assert summary(error) == [("BC062", "a.jsonl:1"), ("BC062", "b.jsonl:1")]
    assert "keys q, a" in str(error)
    assert "Rows with chat" in str(error)


def test_bc062_ambiguous_format_names_both(data):
    records = {**RECORDS, "note": record("note")}
    error = refused(data([{"text": "a", "note": "b"}]), records=records)
    assert summary(error) == [("BC062", "a.jsonl:1")]
    assert "'note' and 'text'" in str(error)


def test_what_the_stage_reads_settles_an_ambiguity(data):
    path = data([{"text": "a", "chat": "b"}])
    assert tokens(prepare(path)) == ["a"]
    assert tokens(prepare(path, reads="chat")) == ["b"]


def test_bc063_detected_and_named(data):
    path = data([{"chat": "a"}])
    for formats in ([None], ["chat"]):
        error = refused(path, formats=formats)
        assert summary(error) == [("BC063", "a.jsonl:1")]
        assert "'chat' gives chat samples" in str(error)
        assert "'bytes' reads text samples" in str(error)


class Completions(ByteStage):
    def encode_one(self, sample):
        return self.example(sample.completion[0]["content"])


class Labelled:
    def convert(self, *, row):
        reply = {"role": "assistant", "content": row["text"]}
        return FeedbackSample(prompt=({"role": "user", "content": "?"},), completion=(reply,), label=row["label"])


@pytest.mark.parametrize(
    ("labels", "warned"), [([True] * 3, {"BC096": 3}), ([False], {"BC096": 1}), ([True, False], {})]
)
def test_bc096_feedback_with_one_label(data, labels, warned):
    feedback = record("text", "feedback")
    object.__setattr__(feedback, "build", lambda *, options: Labelled())
    path = data([{"text": "a", "label": label} for label in labels])
    store = prepare(path, stage=Completions(), reads="feedback", records={"text": feedback})
    assert store.report.warnings == warned


def test_bc060_names_the_plugin_that_broke_its_contract(data):
    class Short(ByteStage):
        def encode(self, *, samples):
            return []

    class Columns(ByteStage):
        def example(self, text):
            return TokenExample(columns={"input_ids": [2**40], "spans": []}, length=1, count=1)

    for path, options in [
        (data([{"broken": 1}]), {}),
        (data(["crash"], "b.jsonl"), {}),
        (data(["a"], "c.jsonl"), {"stage": Short()}),
        (data(["a"], "d.jsonl"), {"stage": Columns()}),
    ]:
        with pytest.raises(PluginError, match=r"BC060.*'(broken|bytes)'"):
            prepare(path, **options)
