"""Ranks that differ are named before training, with both values; an output_dir that is not shared is found."""

import threading

import pytest

from bumblecore_core.errors import RunError
from bumblecore_core.run import rank_comparison
from bumblecore_core.run.rank_comparison import require_same, require_shared


class Ranks:
    """Engines of ranks that are threads of this process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sums: list[list[float]] = [[]] * count
        self.meeting = threading.Barrier(count, timeout=20)

    def run(self, action) -> list:
        """What `action(engine)` returned or raised, by rank."""
        results = [None] * self.count

        def of_rank(rank: int) -> None:
            try:
                results[rank] = action(_Engine(self, rank))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class _Engine:
    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.world_size = ranks, rank, ranks.count

    def barrier(self) -> None:
        self.ranks.meeting.wait()

    def sum_over_ranks(self, values) -> list[float]:
        self.ranks.sums[self.rank] = list(values)
        self.barrier()
        sums = [sum(column) for column in zip(*self.ranks.sums, strict=True)]
        self.barrier()
        return sums


FACTS = {"optimizer": {"name": "adamw", "lr": 1e-3}, "data": {"content": "a" * 64, "examples": 40}, "long": "x" * 500}


def test_equal_ranks_pass_in_one_sum():
    ranks = Ranks(3)
    sums = []
    plain = _Engine.sum_over_ranks

    def counted(engine, values):
        sums.append(engine.rank)
        return plain(engine, values)

    _Engine.sum_over_ranks = counted
    try:
        assert ranks.run(lambda engine: require_same(engine, FACTS)) == [None] * 3
    finally:
        _Engine.sum_over_ranks = plain
    assert sorted(sums) == [0, 1, 2]


def test_each_difference_is_named_on_every_rank_with_both_values(monkeypatch):
    monkeypatch.setattr(rank_comparison.socket, "gethostname", lambda: "node")

    def compare(engine) -> None:
        facts = dict(FACTS)
        if engine.rank in (1, 3):
            facts["optimizer"] = {"name": "adamw", "lr": 2e-3}
        if engine.rank == 2:
            facts["data"] = {"content": "b" * 64, "examples": 39}
            facts["scheduler"] = "linear"
            facts["long"] = "x" * 499
        require_same(engine, facts)

    raised = Ranks(4).run(compare)
    assert [type(error) for error in raised] == [RunError] * 4
    assert {str(error) for error in raised} == {str(raised[0])}
    lines = str(raised[0]).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"BC088 {key}" for key in ("optimizer.lr", "data.content", "data.examples", "long", "scheduler")
    ]
    assert "BC088 optimizer.lr: is 0.002 on ranks 1, 3 (node) and 0.001 on rank 0 (node). Start all ranks" in lines[0]
    assert "data.content: is bbbbbbbbbbbb on rank 2 (node) and aaaaaaaaaaaa on rank 0" in lines[1]
    assert "data.examples: is 39 on rank 2 (node) and 40 on rank 0" in lines[2]
    assert "is linear on rank 2 (node) and not set on rank 0" in lines[4]


def test_a_directory_that_only_rank_0_writes_to_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_comparison, "SHARED_WAIT", 0.3)
    shared = Ranks(2).run(lambda engine: require_shared(engine, tmp_path))
    assert shared == [None, None]
    (tmp_path / "mine").mkdir()
    raised = Ranks(3).run(lambda engine: require_shared(engine, tmp_path / ("other" if engine.rank == 2 else "mine")))
    assert [error.problems[0].code for error in raised] == ["BC067", "BC067", "BC089"]
    assert f"BC089 {tmp_path}/other output_dir: rank 2 on " in str(raised[2])
    assert list((tmp_path / "mine").iterdir()) == []
    assert Ranks(1).run(lambda engine: require_shared(engine, tmp_path / "none")) == [None]


def test_a_file_that_appears_late_is_waited_for(tmp_path, monkeypatch):
    looks = []
    exists = rank_comparison.Path.exists
    monkeypatch.setattr(rank_comparison.time, "sleep", lambda seconds: looks.append(seconds))
    monkeypatch.setattr(rank_comparison.Path, "exists", lambda path: len(looks) > 2 and exists(path))
    assert Ranks(2).run(lambda engine: require_shared(engine, tmp_path)) == [None, None]
    assert len(looks) >= 3


@pytest.mark.parametrize("text", [None, "x" * 200, '"plain"', '"' + "c" * 64 + '"'])
def test_values_are_shown_short(text):
    assert len(rank_comparison._brief(text)) <= 80
