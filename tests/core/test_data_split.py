"""`data.eval_split`: whole rows are held out, and always the same ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_stages import prepare
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.errors import DataError
from bumblecore_core.run.data.split import split_eval


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 5), min_size=2, max_size=40),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_every_example_is_on_one_side_with_all_of_its_row(pieces, share, seed):
    rows = np.repeat(np.arange(len(pieces)), pieces)
    train, evaluation = split_eval(rows, share, seed)
    assert sorted([*train, *evaluation]) == list(range(len(rows)))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(evaluation) > 0)
    held_out = set(rows[evaluation])
    assert held_out.isdisjoint(rows[train])
    assert len(held_out) == min(len(pieces) - 1, max(1, round(len(pieces) * share)))
    assert np.array_equal(split_eval(rows, share, seed)[1], evaluation)


def test_the_rows_depend_on_the_seed_and_not_on_their_pieces():
    rows = np.arange(1000)
    _, first = split_eval(rows, 0.1, seed=1)
    assert not np.array_equal(first, split_eval(rows, 0.1, seed=2)[1])
    doubled = np.repeat(rows, 2)
    assert np.array_equal(np.unique(doubled[split_eval(doubled, 0.1, seed=1)[1]]), first)


@pytest.mark.parametrize("rows", [[], [0], [0, 0, 0]])
def test_bc008_one_document_cannot_be_split(rows):
    with pytest.raises(DataError, match=r"BC008 data\.eval_split: .*row"):
        split_eval(np.array(rows, dtype=np.int64), 0.3, seed=1)


def test_a_store_knows_the_rows_of_its_examples(data, tmp_path):
    data(["split a b c", "drop", "d"])
    (tmp_path / "b.json").write_text(json.dumps([{"text": "split e f"}, {"text": "g"}]))
    store = prepare("a.jsonl", "b.json", data(["split h i"], "c.jsonl"))
    assert store.rows().tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 4]


def test_rows_at_the_same_line_of_two_files_are_two(data):
    assert prepare(data(["a"]), data(["b"], "b.jsonl")).rows().tolist() == [0, 1]
