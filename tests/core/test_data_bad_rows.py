"""`data.on_bad_row`: bad rows end the preparation, with equal ones on one line, or are skipped, counted and listed."""

from __future__ import annotations

import pytest
from data_stages import FieldFormat, prepare, refused, summary, tokens
from pydantic import Field

from bumblecore_core.errors import PluginError
from bumblecore_core.records import DataFormatRecord, Options
from bumblecore_core.run.data.bad_rows import SKIPPED_LOG
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.run.facts import data_facts

BAD = ["a", "bad", {"other": 1}, "bad", "b"]
"""Rows with two kinds of errors: of the stage, and of the format."""


def skipping(*paths, **options):
    return prepare(*paths, **{"on_bad_row": "skip", "max_bad_share": 0.6} | options)


def facts(store) -> list[tuple[str, str]]:
    options = PlanOptions(
        micro_batch_size=1, gradient_accumulation_steps=1, world_size=1, seed=1, packing=False, max_length=64
    )
    rows = store.rows()
    plan = BatchPlan(lengths=store.lengths, counts=store.counts, rows=rows, options=options, epochs=1.0)
    return data_facts(store, rows, 0, plan, token_loss=True)


# -- skip -------------------------------------------------------------------------------------------------------------


def test_rows_with_errors_of_reading_format_and_stage_are_skipped(data, tmp_path):
    data(BAD)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('oops\n{"text": "c", "text": "d"}\n{"text": "e"}\n[]\n{"text": "torn')
    store = skipping("a.jsonl", max_bad_share=0.8)
    assert tokens(store) == ["a", "b", "e"]
    assert [store.locate(index) for index in range(3)] == ["a.jsonl:1", "a.jsonl:5", "a.jsonl:8"]
    report = store.report
    assert report.rows == 10
    assert {row.code: (row.count, row.places) for row in report.skipped} == {
        "BC014": (2, ("a.jsonl:2", "a.jsonl:4")),
        "BC007": (1, ("a.jsonl:3",)),
        "BC001": (1, ("a.jsonl:6",)),
        "BC005": (1, ("a.jsonl:7",)),
        "BC011": (1, ("a.jsonl:9",)),
        "BC010": (1, ("a.jsonl:10",)),
    }
    assert report.skipped[0].code == "BC014"  # the most frequent


def test_all_skipped_rows_are_listed_next_to_the_shards_and_shown(data):
    store = skipping(data(["a"] * 10 + ["bad"] * 5))
    log = store.directory / SKIPPED_LOG
    assert log.read_text().splitlines() == [
        f"BC014 a.jsonl:{line} text: it is bad. make it good." for line in range(11, 16)
    ]
    shown = [value for name, value in facts(store) if name == "skipped"]
    assert shown == [
        "5 rows: BC014 a conversation ends with a user turn (a.jsonl:11, a.jsonl:12, a.jsonl:13, …)",
        f"all of them are listed in {log}",
    ]
    assert facts(skipping("a.jsonl"))[:-1] == facts(store)[:-1]  # the last one says that the shards are reused


def test_nothing_is_listed_where_no_row_is_skipped(data):
    store = skipping(data(["a", "drop"]))
    assert not (store.directory / SKIPPED_LOG).exists()
    assert "skipped" not in dict(facts(store))
    assert store.report.skipped == ()


def test_bc097_too_many_bad_rows_say_what_is_wrong(data, tmp_path):
    data(BAD)
    error = refused("a.jsonl", on_bad_row="skip")
    assert summary(error) == [("BC097", ""), ("BC014", "a.jsonl:2"), ("BC007", "a.jsonl:3")]
    assert error.problems[0].field == "data.max_bad_share"
    for part in ("3 of 5 rows (60.0%)", "2 × BC014", "1 × BC007", "(0.05)"):
        assert part in error.problems[0].problem + error.problems[0].fix
    assert len(skipping("a.jsonl", max_bad_share=0.6)) == 2
    assert summary(refused("a.jsonl", on_bad_row="skip", max_bad_share=0.59))[0][0] == "BC097"  # of reused shards too


def test_a_share_of_five_percent_is_allowed(data):
    assert len(prepare(data(["bad"] * 5 + ["a"] * 95), on_bad_row="skip")) == 95
    assert summary(refused(data(["bad"] * 6 + ["a"] * 94), on_bad_row="skip"))[0][0] == "BC097"


def test_shards_with_skipped_rows_are_not_reused_where_rows_may_not_be_skipped(data):
    skipping(data(BAD))
    assert summary(refused("a.jsonl")) == [("BC014", "a.jsonl:2"), ("BC007", "a.jsonl:3")]


def test_strict_rows_are_bad_rows(data):
    store = skipping(data(["a", "drop", "b"]), strict=True)
    assert [(row.code, row.count) for row in store.report.skipped] == [("BC015", 1)]
    assert store.report.dropped == ()


def test_rows_of_another_schema_are_skipped_one_by_one(data):
    store = skipping(data(["a", {"chat": "c"}, {"chat": "d"}, "b"]))
    assert tokens(store) == ["a", "b"]
    assert [(row.code, row.count) for row in store.report.skipped] == [("BC006", 2)]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.json", '[{"text": "a"},\n{"text" "b"},\n{"text": "c"}]', "BC001"),
        ("a.json", '[{"text": "a"},\n{"text": "b', "BC010"),
        ("a.csv", 'text\na\n"x"y\nb\n', "BC001"),
        ("a.jsonl", "", "BC008"),
        ("a.jsonl", '{"z": 1}\n{"text": "a"}\n', "BC062"),
        ("a.jsonl", '{"chat": "a"}\n{"text": "a"}\n', "BC063"),
    ],
)
def test_what_ends_a_file_is_an_error_all_the_same(data, tmp_path, name, content, code):
    (tmp_path / name).write_text(content)
    error = refused(name, data(BAD, "bad.jsonl"), on_bad_row="skip", max_bad_share=1.0)
    assert [problem.code for problem in error.problems] == [code]


def test_a_format_that_raises_is_an_error_all_the_same(data):
    with pytest.raises(PluginError, match="BC060"):
        skipping(data([{"broken": 1}] * 2))


def test_bc008_where_every_row_is_skipped(data):
    error = refused(data(["bad"] * 4), on_bad_row="skip", max_bad_share=1.0)
    assert summary(error) == [("BC008", "")]
    assert "4 × BC014" in error.problems[0].problem


# -- equal errors -----------------------------------------------------------------------------------------------------


def test_equal_errors_are_one_line_for_each_file(data):
    data(["a", *["bad"] * 30])
    data(["bad"] * 2, "b.jsonl")
    problems = refused("a.jsonl", "b.jsonl").problems
    assert [problem.place for problem in problems] == ["a.jsonl:2", "b.jsonl:1"]
    assert problems[0].problem == "it is bad (30 of 31 rows read: a.jsonl:2, a.jsonl:3, a.jsonl:4, …)"
    assert problems[1].problem == "it is bad (all 2 rows read: b.jsonl:1, b.jsonl:2)"


class Names(Options):
    question: str = Field("question", description="The task.")
    answer: str = Field("answer", description="The reply.")
    level: int = Field(3, description="A number.")


def mapped() -> dict[str, DataFormatRecord]:
    """A format whose options name its columns, the first of which is needed."""

    def build(*, options):
        return FieldFormat(options.question)

    return {"faq": DataFormatRecord(name="faq", summary="x", build=build, detect=lambda row: "text", options=Names)}


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"q": "a", "answer": "b"}, "{name: faq, question: q}"),
        ({"id": 1, "questions": "a", "answer": "b"}, "{name: faq, question: questions}"),
        ({"die Frage": "a"}, '{name: faq, question: "die Frage"}'),
        ({"yes": "a"}, '{name: faq, question: "yes"}'),
    ],
)
def test_a_column_that_all_rows_lack_is_mapped_by_the_yaml_in_the_fix(data, row, shown):
    (problem,) = refused(data([row] * 4), records=mapped()).problems
    assert problem.code == "BC007"
    assert problem.fix == f"Name the column that holds it, such as data.format: {shown}"
    assert "all 4 rows read" in problem.problem


@pytest.mark.parametrize("rows", [[{"q": "a"}, {"question": "b"}], [{"answer": "a"}] * 2, [{"x" * 50: 1}] * 2])
def test_no_column_is_suggested_where_some_rows_have_it_or_none_is_left(data, rows):
    (problem,) = refused(data(rows), records=mapped()).problems
    assert problem.fix == "add it"


class Task(Options):
    instruction: str = Field("instruction", description="The task.")
    output: str = Field("output", description="The reply.")


TASK = DataFormatRecord(
    name="task",
    summary="x",
    build=lambda *, options: FieldFormat("text"),
    detect=lambda row: "text" if {"instruction", "output"} <= row.keys() else None,
    options=Task,
)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"id": 1, "Question": "a", "answer": "b"}, "{name: task, instruction: Question, output: answer}"),
        ({"instructions": "a", "output": "b"}, "{name: task, instruction: instructions}"),
    ],
)
def test_an_unknown_format_is_suggested_with_the_columns_that_it_could_read(data, row, shown):
    (problem,) = refused(data([row]), records={"task": TASK}).problems
    assert problem.code == "BC062"
    assert f"Name data.format, such as data.format: {shown}, with its options" in problem.fix


@pytest.mark.parametrize(("row", "reads"), [({"a": 1, "answer": 2}, "text"), ({"question": 1, "answer": 2}, "chat")])
def test_no_format_is_suggested_that_would_not_read_the_row(data, row, reads):
    (problem,) = refused(data([row]), records={"task": TASK}, reads=reads).problems
    assert problem.fix.startswith("Name data.format, with its options")
