"""Every model type of the zoo trains as a plain loop does, or is refused before training."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import CONFIG_MAPPING

from zoo.bench import make_bench
from zoo.checks import check_type, problems, refusal
from zoo.results import FILE
from zoo.rows import ROWS

STORED = json.loads(FILE.read_text(encoding="utf-8"))["types"]
FAST = ("llama", "bert")
"""Types that run with the fast tests, so that the zoo itself is tried."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The data of the zoo."""
    return make_bench(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.name in FAST else pytest.mark.slow)
        for row in ROWS
        if row.name in STORED
    ],
)
def test_a_type_trains_exactly_or_is_refused(bench, row):
    if row.model_type not in CONFIG_MAPPING:
        pytest.skip("this version of transformers does not have it")
    if row.refused:
        assert refusal(bench, row).startswith(row.refused)
        return
    result = check_type(bench, row)
    shutil.rmtree(bench.directory / row.name.replace(" ", "-"))
    assert not problems(row, result)


def test_stored_results_are_those_that_the_table_expects():
    """docs/models.md is made from them; `python tests/zoo/results.py --write` stores them."""
    assert list(STORED) == [row.name for row in ROWS if row.name in STORED]
    for row in ROWS:
        if row.name not in STORED:
            continue
        found = STORED[row.name]
        assert found.get("refused") == row.refused
        if not row.refused:
            assert not problems(row, found)
