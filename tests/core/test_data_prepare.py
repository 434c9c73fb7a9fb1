"""From files to shards: what is counted, what is refused, when shards are reused, and that processes change nothing."""

from __future__ import annotations

import json
import multiprocessing
import os

import numpy as np
import pytest
from data_stages import RECORDS, ByteStage, prepare, record

from bumblecore_core.errors import DataError, PluginError, RunError
from bumblecore_core.run.data.prepare import split_eval
from bumblecore_core.values import TokenExample


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Writes a jsonl file of texts (or of whole rows) in the working directory and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(rows, name="a.jsonl"):
        lines = [json.dumps(row if isinstance(row, dict) else {"text": row}) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        return name

    return write


def refused(*args, **kwargs) -> DataError:
    with pytest.raises(DataError) as caught:
        prepare(*args, **kwargs)
    return caught.value


def summary(error: DataError) -> list[tuple[str, str]]:
    return [(problem.code, problem.place) for problem in error.problems]


def tokens(store) -> list[str]:
    return [bytes(store.example(index)["input_ids"].tolist()).decode() for index in range(len(store))]


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
    assert summary(error) == [("BC014", "a.jsonl:2"), ("BC007", "a.jsonl:3"), ("BC014", "a.jsonl:4")]
    assert str(error).splitlines()[0] == "BC014 a.jsonl:2 text: it is bad. make it good."


def test_many_problems_are_counted_and_reading_stops(data):
    error = refused(data(["bad"] * 250))
    assert error.total == 250
    assert len(str(error).splitlines()) == 21
    assert str(error).endswith("… and 230 more.")
    assert refused(data(["bad"] * 5000)).total < 1100


def test_a_file_of_bad_lines_is_not_read_to_its_end(data, tmp_path):
    (tmp_path / "a.jsonl").write_text("oops\n" * 100_000)
    assert refused("a.jsonl").total < 1100


def test_nothing_is_kept_of_a_failed_build(data, tmp_path):
    refused(data(["a", "bad"]), cache_dir=str(tmp_path / "cache"))
    assert [path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]


def test_bc006_names_both_schemas_once(data):
    error = refused(data(["a", {"text": "b", "input": ""}, {"chat": "c"}, {"chat": "d"}]))
    assert summary(error) == [("BC006", "a.jsonl:3")]
    assert error.total == 2
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


# -- reuse ------------------------------------------------------------------------------------------------------------


def test_a_second_run_reuses_and_says_so(data, tmp_path):
    first = prepare(data(["a", "b"]), cache_dir=str(tmp_path / "cache"))
    again = prepare({"path": "a.jsonl", "weight": 3.0}, cache_dir=str(tmp_path / "cache"), stage=ByteStage(off=True))
    assert (first.report.reused, again.report.reused) == (False, True)
    assert (again.directory, again.weights, tokens(again)) == (first.directory, (3.0,), ["a", "b"])


def test_a_moved_file_is_reused_under_its_new_name(data, tmp_path):
    prepare(data(["a"]))
    os.rename("a.jsonl", "moved.jsonl")
    store = prepare("moved.jsonl")
    assert store.report.reused
    assert store.locate(0) == "moved.jsonl:1"


def test_everything_that_changes_tokens_changes_the_fingerprint(data):
    path = data(["a"])
    prints = {
        prepare(path, **options).fingerprint
        for options in (
            {},
            {"tokenizer": "other"},
            {"max_length": 99},
            {"strict": True},
            {"txt_split": "file"},
            {"formats": ["text"]},
        )
    }
    prints.add(prepare(data(["b"])).fingerprint)
    prints.add(prepare("a.jsonl", data(["c"], "b.jsonl")).fingerprint)
    prints.add(prepare("b.jsonl", "a.jsonl").fingerprint)
    assert len(prints) == 9


def test_an_edited_file_of_the_same_size_is_seen(data):
    first = prepare(data(["aaaa"]))
    os.utime("a.jsonl", (1, 1))
    assert prepare("a.jsonl").report.reused  # hashed anew, and remembered, since its time is settled now
    assert prepare("a.jsonl").report.reused
    second = prepare(data(["bbbb"]))
    assert not second.report.reused
    assert (tokens(first), tokens(second)) == (["aaaa"], ["bbbb"])


def test_a_torn_store_is_built_again(data):
    directory = prepare(data(["a"])).directory
    (directory / "lengths.bin").write_bytes(b"")
    again = prepare("a.jsonl")
    assert not again.report.reused
    assert again.directory == directory
    assert tokens(again) == ["a"]


def test_leftovers_of_a_killed_build_are_removed(data):
    directory = prepare(data(["a"])).directory
    leftover = directory.with_name(directory.name + ".tmp-123")
    leftover.mkdir()
    (directory / "meta.json").unlink()
    prepare("a.jsonl")
    assert not leftover.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_bc042_a_cache_without_permission(data, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(RunError, match="BC042"):
        prepare(data(["a"]), cache_dir=str(tmp_path / "cache"))


def test_bc042_a_cache_that_is_a_file(data, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(RunError, match=r"BC042 .*data\.cache_dir"):
        prepare(data(["a"]), cache_dir=str(tmp_path / "cache"))


# -- processes --------------------------------------------------------------------------------------------------------


def files_of(store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.directory.iterdir() if path.name != "meta.json"}


@pytest.mark.parametrize("make_stage", [None, ByteStage])
def test_any_number_of_processes_gives_the_same_bytes(data, tmp_path, make_stage):
    texts = [f"split {'word ' * (i % 7)}" if i % 3 else f"row {i} drop" for i in range(1500)] + ["drop", "cut", "warn"]
    data(texts)
    one, two = (
        prepare("a.jsonl", num_proc=n, cache_dir=str(tmp_path / f"cache-{n}"), make_stage=make_stage) for n in (0, 2)
    )
    assert files_of(one) == files_of(two)
    assert (one.report.dropped, one.report.warnings) == (two.report.dropped, two.report.warnings)
    assert len(one) > 3000


def test_problems_are_the_same_with_processes(data, tmp_path):
    data(["bad" if i % 100 == 7 else "a" for i in range(1500)])
    errors = [refused("a.jsonl", num_proc=n) for n in (0, 2)]
    assert errors[0].problems == errors[1].problems
    assert len(errors[0].problems) == 15


def test_a_stage_that_cannot_travel_runs_here(data):
    stage = ByteStage()
    stage.lock = multiprocessing.get_context("spawn").Lock()
    assert tokens(prepare(data(["a"]), stage=stage, num_proc=4)) == ["a"]


def build_and_report(directory, barrier, results):
    os.chdir(directory)
    barrier.wait()
    results.put(prepare("a.jsonl", cache_dir="cache").report.reused)


def test_one_of_several_processes_builds(data, tmp_path):
    data([f"row {i}" for i in range(2000)])
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=build_and_report, args=(tmp_path, barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    reused = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert reused == [False, True, True]


# -- the evaluation split ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "share", "held_out"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.25, 2), (1000, 0.1, 100)])
def test_split_eval(count, share, held_out):
    train, evaluation = split_eval(count, share, seed=1)
    assert len(evaluation) == held_out
    assert sorted([*train, *evaluation]) == list(range(count))
    assert np.array_equal(split_eval(count, share, seed=1)[1], evaluation)
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(evaluation) > 0)


def test_split_eval_depends_on_the_seed_and_needs_two():
    assert not np.array_equal(split_eval(1000, 0.1, seed=1)[1], split_eval(1000, 0.1, seed=2)[1])
    with pytest.raises(DataError, match="BC008"):
        split_eval(1, 0.5, seed=1)
