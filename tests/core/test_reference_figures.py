"""A reference's figures: each row's are those of the micro-batch that meets it first, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bumblecore_core.errors import RunError
from bumblecore_core.protocols import Reference
from bumblecore_core.run import reference as reference_module
from bumblecore_core.run.attention_choice import AttentionChoice
from bumblecore_core.run.reference import BASE, START, Wanted, ask_before_training
from bumblecore_core.run.reference_cache import DamagedFigures, read_figures, write_figures
from core.reference_runs import COLUMNS, Store, make_engine, make_plan, make_prepared, on_two_ranks

PLANS = {
    "an epoch": {},
    "repeated rows": {"weights": (2.5,), "epochs": 1.2},
    "a part of the rows": {"rows": range(3, 30), "max_steps": 4},
    "packing": {"packing": True, "micro_batch_size": 1},
}


@pytest.fixture(autouse=True)
def _batches_are_rows(monkeypatch):
    monkeypatch.setattr(reference_module, "collate", lambda store, stage, rows: SimpleNamespace(store=store, rows=rows))
    monkeypatch.setattr(reference_module, "SUMMED_AT_ONCE", 7)


def figures(batch):
    """Depends on the row and on the rows with which it shares a forward pass."""
    values = torch.tensor([row * 1000.0 + sum(batch.rows) for row in batch.rows], dtype=torch.float32)
    return {"chosen": values, "rejected": -values}


def wanted_of(prepared, model=START):
    stores = {prepared.store.directory, prepared.eval_store.directory}
    files = {directory: directory.parent / f"{directory.name}.logprobs" for directory in stores}
    return Wanted(reference=Reference(model=model, columns=COLUMNS), model_dir=Path("m"), weights="w", files=files)


def expected(plans, count=39):
    """Each row's figure of its first micro-batch in the order of the steps; 0 of rows that are not met."""
    found = {}
    for plan in plans:
        for window in plan.windows():
            for micro in (micro for rank in window.micro_batches for micro in rank if micro.counts):
                for row in micro.rows:
                    found.setdefault(row, row * 1000.0 + sum(micro.rows))
    assert found
    return [found.get(row, 0.0) for row in range(count)]


def ask(prepared, engine, calls=None):
    def asked(batch):
        if calls is not None:
            calls.append(batch.store.directory.name)
        return figures(batch)

    reference_module._ask_all(wanted_of(prepared), prepared, engine, asked)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("plan", PLANS)
def test_a_rows_figures_are_those_of_its_first_micro_batch(tmp_path, plan, ranks):
    plan = make_plan(**PLANS[plan], world_size=ranks)

    def on_rank(engine):
        prepared, calls = make_prepared(tmp_path, plan=plan), []
        ask(prepared, engine, calls)
        return prepared.store.attached, len(calls)

    results = [on_rank(make_engine())] if ranks == 1 else on_two_ranks(on_rank)
    assert len({passes for _, passes in results}) == 1, "each rank runs the same number of forward passes"
    for attached, _ in results:
        assert attached["chosen"].tolist() == expected([plan])
        assert attached["rejected"].tolist() == [-value for value in expected([plan])]
        assert {column.dtype for column in attached.values()} == {np.dtype(np.float64)}
    kept = read_figures(tmp_path / "store.logprobs", COLUMNS, 39)
    assert {name: column.tolist() for name, column in kept.items()} == {
        name: column.tolist() for name, column in results[0][0].items()
    }


def test_an_odd_number_of_micro_batches_on_two_ranks_counts_each_once(tmp_path):
    plan = make_plan(rows=range(3), micro_batch_size=1, gradient_accumulation_steps=3)  # one rank has none at the end

    def on_rank(engine):
        prepared = make_prepared(tmp_path, plan=plan)
        ask(prepared, engine)
        return prepared.store.attached["chosen"].tolist()

    assert on_two_ranks(on_rank) == [expected([plan])] * 2


@pytest.mark.parametrize("apart", [False, True])
def test_training_and_evaluation_rows_are_looked_up_in_their_own_stores(tmp_path, apart):
    training, evaluation = make_plan(rows=range(10)), make_plan(rows=range(5, 20), shuffle=False)
    eval_store = Store(tmp_path / ("evaluation" if apart else "store"))  # another object of the same directory
    prepared, calls = make_prepared(tmp_path, plan=training, eval_plan=evaluation, eval_store=eval_store), []
    ask(prepared, make_engine(), calls)
    if apart:
        assert prepared.store.attached["chosen"].tolist() == expected([training])
        assert eval_store.attached["chosen"].tolist() == expected([evaluation])
        assert set(calls) == {"store", "evaluation"}
    else:
        assert prepared.store.attached["chosen"].tolist() == expected([training, evaluation])
        assert eval_store.attached["chosen"].tolist() == expected([training, evaluation])


def test_what_was_kept_is_read_only_where_it_is_of_these_rows_and_names(tmp_path):
    path, values = tmp_path / "cache" / "x.logprobs", {name: np.arange(5.0) for name in COLUMNS}
    assert read_figures(path, COLUMNS, 5) is None
    write_figures(path, values)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert {name: column.tolist() for name, column in read_figures(path, COLUMNS, 5).items()} == {
        name: [0.0, 1.0, 2.0, 3.0, 4.0] for name in COLUMNS
    }
    assert read_figures(path, COLUMNS, 6) is None
    assert read_figures(path, COLUMNS, 4) is None
    assert read_figures(path, COLUMNS[:1], 5) is None
    assert read_figures(path, [*COLUMNS, "more"], 5) is None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFigures):
        read_figures(path, COLUMNS, 5)


def test_figures_that_one_rank_lacks_are_computed_by_all(tmp_path):
    def on_rank(engine):
        prepared = make_prepared(tmp_path / f"rank-{engine.rank}")
        wanted = wanted_of(prepared)
        if engine.rank == 0:
            write_figures(wanted.files[prepared.store.directory], {name: np.arange(39.0) for name in COLUMNS})
        return reference_module._attach_kept(wanted, prepared, engine), prepared.store.attached

    assert on_two_ranks(on_rank) == [((False, []), {})] * 2


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """What is asked before training: words, warnings, and whether a second model was loaded."""
    loaded = []
    monkeypatch.setattr(
        reference_module, "chosen_attention", lambda *_, **__: AttentionChoice(name="sdpa", implementation="sdpa")
    )
    monkeypatch.setattr(reference_module, "load_config", lambda *_, **__: None)
    monkeypatch.setattr(reference_module, "_ask_another", lambda *_: loaded.append(None) or 1.5)
    prepared = make_prepared(tmp_path)

    def ask(model, *, resuming):
        loaded.clear()
        words, warnings = ask_before_training(
            wanted_of(prepared, model), prepared, None, make_engine(), resuming=resuming
        )
        return words, warnings, bool(loaded)

    return ask, prepared


@pytest.mark.parametrize(
    ("model", "resuming", "loads"),
    [
        *[(START, False, False), (START, True, True), (BASE, False, False), (BASE, True, False)],
        *[("another", False, True), ("another", True, True)],
    ],
)
def test_a_second_model_is_loaded_only_where_the_trained_one_cannot_answer(asking, model, resuming, loads):
    """The start model of a resumed run has been trained since; the base below an adapter is still there."""
    words, warnings, loaded = asking[0](model, resuming=resuming)
    assert (loaded, warnings) == (loads, [])
    assert (words is not None) == loads


@pytest.mark.parametrize("model", [START, BASE, "another"])
def test_kept_figures_are_used_and_damaged_ones_are_named(asking, model):
    ask, prepared = asking
    path = wanted_of(prepared).files[prepared.store.directory]
    write_figures(path, {name: np.arange(39.0) for name in COLUMNS})
    words, warnings, loaded = ask(model, resuming=True)
    assert words.endswith(", computed by an earlier run")
    assert (warnings, loaded) == ([], False)
    assert prepared.store.attached["chosen"].tolist() == list(range(39))
    path.write_bytes(b"damaged")
    _, (warning,), _ = ask(model, resuming=False)
    assert warning == f"BC075 damaged cache files were rebuilt: 1 ({path.parent})"


def test_figures_that_cannot_be_kept_end_the_run(tmp_path):
    prepared = make_prepared(tmp_path)
    wanted_of(prepared).files[prepared.store.directory].mkdir()
    with pytest.raises(RunError, match="BC042"):
        ask(prepared, make_engine())
