"""Token shards are reused when nothing that makes them changed, and any number of processes makes the same ones."""

from __future__ import annotations

import multiprocessing
import os

import pytest
from data_stages import ByteStage, prepare, refused, tokens

from bumblecore_core.errors import RunError


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


def files_of(store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.directory.iterdir() if path.name != "meta.json"}


@pytest.mark.parametrize("make_stage", [None, ByteStage])
def test_any_number_of_processes_gives_the_same_bytes(data, tmp_path, make_stage):
    texts = [f"split {'word ' * (i % 7)}" if i % 3 else f"row {i} drop" for i in range(1500)] + ["drop", "cut", "warn"]
    data(texts)
    one, two = (
        prepare("a.jsonl", num_proc=n, cache_dir=str(tmp_path / f"cache-{n}"), make_stage=make_stage, too_long="drop")
        for n in (0, 2)
    )
    assert files_of(one) == files_of(two)
    assert (one.report.dropped, one.report.warnings) == (two.report.dropped, two.report.warnings)
    assert [row.code for row in one.report.dropped] == ["BC015", "BC028"]
    assert len(one) > 3000


def test_problems_are_the_same_with_processes(data, tmp_path):
    data(["bad" if i % 100 == 7 else "a" for i in range(1500)])
    errors = [refused("a.jsonl", num_proc=n) for n in (0, 2)]
    assert errors[0].problems == errors[1].problems
    (problem,) = errors[0].problems
    assert "15 of 1,500 rows read: a.jsonl:8, a.jsonl:108, a.jsonl:208, …" in problem.problem


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
