"""A rank of a ZeRO run is killed at points of the loop and of a save: the run goes on to the same bits."""

import pytest

from bumblecore_core.run.checkpoint.compare import checkpoint_differences, history_differences
from zero_runs import SAVED, STEPS, on_ranks, written, zero_bench, zero_settings

POINTS = {
    "a forward and backward pass": ("engine", "forward_backward", 1, 8),
    "an optimizer step": ("engine", "step", 0, 3),
    "gathering the weights": ("engine", "model_state", 0, 2),
    "writing a shard": ("engine", "training_state", 1, 2),
    "committing": ("saver", "_commit", 0, 2),
}

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = zero_bench(tmp_path_factory.mktemp("kills"))
    runs = []
    for stage in (2, 3):
        settings = zero_settings(bench, "sft", f"alone_{stage}", ranks=2)
        runs.append(["run", written(bench, settings, name="deepspeed", zero_stage=stage)])
    assert on_ranks(bench, runs) == [[0, 0], [0, 0]]
    return bench


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_rank_loses_nothing(bench, point, stage):
    name = f"killed_{stage}_{list(POINTS).index(point)}"
    run = ["run", written(bench, zero_settings(bench, "sft", name, ranks=2), name="deepspeed", zero_stage=stage)]
    on_ranks(bench, [run], death=POINTS[point])
    kept = [path.name for path in (bench / name).glob("checkpoint-*")]
    assert kept == [f"checkpoint-{SAVED}"]
    assert on_ranks(bench, [run]) == [[0], [0]]
    assert history_differences(bench / name / "metrics.json", bench / f"alone_{stage}" / "metrics.json") == []
    last = f"checkpoint-{STEPS}"
    assert checkpoint_differences(bench / name / last, bench / f"alone_{stage}" / last) == []
