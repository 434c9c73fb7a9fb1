"""Data formats and stages that break their contract are named, with their module; the data file is not blamed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from data_stages import ByteStage, prepare, refused

from bumblecore_core.errors import PluginError
from bumblecore_core.records import DataFormatRecord
from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.data.loader import rank_windows
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.run.guarded import guarded_stage
from bumblecore_core.values import TextSample, TokenExample

GOOD = {"input_ids": [1, 2], "spans": []}


def example(**changes):
    return TokenExample(**{"columns": GOOD, "length": 2, "count": 1, **changes})


def encoding(result):
    class Odd(ByteStage):
        def encode(self, *, samples):
            return result if not callable(result) else result(samples)

    return Odd()


def refused_plugin(words, path, **options):
    with pytest.raises(PluginError) as caught:
        prepare(path, **options)
    (problem,) = caught.value.problems
    assert problem.code == "BC060"
    assert words in problem.problem, problem.problem
    return problem


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "returned None for 1 samples"),
        ([], "returned 0 for 1 samples"),
        (iter([example()]), "returned a list_iterator for 1 samples"),
        ([None], "returned None for a sample"),
        ([[None]], "None among its examples"),
        ([example(columns={"input_ids": [1]})], "lacks the columns input_ids, spans"),
        ([example(columns={**GOOD, "input_ids": [1.5, 2.0]})], "float64 of shape (2,) as the column 'input_ids'"),
        ([example(columns={**GOOD, "input_ids": [[1, 2]]})], "of shape (1, 2) as the column 'input_ids'"),
        ([example(columns={**GOOD, "input_ids": ["1", "2"]})], "as the column 'input_ids'"),
        ([example(columns={**GOOD, "input_ids": np.asarray([2**40])})], "int64 of shape (1,) as the column"),
        ([example(columns={**GOOD, "input_ids": 7})], "of shape () as the column"),
        ([example(length="2")], "the length '2'"),
        ([example(length=0)], "the length 0"),
        ([example(count=-1)], "the count -1"),
        ([example(count=float("nan"))], "the count nan"),
        ([example(count=float("inf"))], "the count inf"),
        ([example(count="1")], "the count '1'"),
        ([example(warnings="BC025")], "a str as warnings"),
        (lambda samples: exit(0), "raised SystemExit while it encoded rows"),
        (lambda samples: samples[0]["x"], "raised TypeError while it encoded rows"),
    ],
)
def test_what_encode_returns(data, result, words):
    problem = refused_plugin(words, data(["secret"]), stage=encoding(result))
    assert "the stage 'bytes' (module data_stages)" in problem.problem
    assert "secret" not in str(problem)


def test_columns_of_any_integer_type_keep_their_values(data):
    columns = {"input_ids": np.asarray([1, 2**31 - 1], dtype=np.int64), "spans": np.asarray([], dtype=np.float64)}
    store = prepare(data(["a"]), stage=encoding([example(columns=columns, length=np.int64(2))]))
    assert store.example(0)["input_ids"].tolist() == [1, 2**31 - 1]
    assert store.example(0)["spans"].tolist() == []


def odd_format(build=None, detect=lambda row: "text"):
    return DataFormatRecord(name="odd", summary="x", build=build or (lambda *, options: None), detect=detect)


def converting(function):
    return odd_format(lambda *, options: SimpleNamespace(convert=lambda *, row: function(row)))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (odd_format(), "built None without convert"),
        (odd_format(lambda *, options: 1 / 0), "raised ZeroDivisionError"),
        (odd_format(detect=lambda row: True), "returned a bool from detect"),
        (odd_format(detect=lambda row: row["nope"]), "raised KeyError in detect"),
        (converting(lambda row: row["nope"]), "raised KeyError (" + __file__),
        (converting(lambda row: exit(0)), "raised SystemExit"),
        (converting(lambda row: None), "returned None, which is no sample"),
        (converting(lambda row: (TextSample(text="a") for _ in [1])), "a generator, which is no sample"),
        (converting(lambda row: TextSample(text=7)), "text is an int, not text"),
    ],
)
def test_what_a_format_does(data, chosen, words):
    problem = refused_plugin(words, data(["secret"]), records={"odd": chosen})
    assert f"the data format 'odd' (module {__name__})" in problem.problem
    assert "secret" not in str(problem)


def test_bc062_mentions_plugins_that_could_not_be_loaded(data):
    path = data([{"zzz": "a"}])
    assert "failed" not in str(refused(path))
    error = refused(path, failures="; these plugins failed: 'sparkle' of sparkle 1.0 (sparkle): ImportError")
    assert "BC062" in str(error)
    assert "these plugins failed: 'sparkle' of sparkle 1.0 (sparkle): ImportError." in str(error)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stages_fault_in_a_data_worker_keeps_its_code_and_name(data, workers):
    class Collating(ByteStage):
        def collate(self, *, examples, rows, counts):
            return None

    store = prepare(data(["one", "two"]))
    options = PlanOptions(
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        world_size=1,
        seed=0,
        packing=False,
        max_length=8,
    )
    plan = BatchPlan(lengths=store.lengths, counts=store.counts, rows=np.arange(2), options=options, max_steps=1)
    stage = guarded_stage(Collating(), Plugin("stages", "odd", "odd_module"), None)
    windows = rank_windows(store=store, stage=stage, plan=plan, rank=0, num_workers=workers, pin_memory=False)
    with pytest.raises(PluginError) as caught:
        [list(micros) for _, micros in windows]
    (problem,) = caught.value.problems
    assert str(problem).startswith("BC060 stages.odd: the stage 'odd' (module odd_module) returned None, not a Batch.")
