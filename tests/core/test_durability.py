"""What is renamed into place has reached the disk before, with every file in it, and its directory afterwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_stages import prepare

from bumblecore_core.run.checkpoint.history import HISTORY_LOG, HistoryFile
from bumblecore_core.run.checkpoint.writing import STATE, commit, rank_directory, write_part
from bumblecore_core.run.data import prepare as prepare_module
from bumblecore_core.run.data.store import StoreWriter
from bumblecore_core.run.files import fresh_beside, write_text
from bumblecore_core.run.output_dir import HEADER
from bumblecore_core.run.overwrite import put_back, set_aside
from bumblecore_core.toolkit.disk import put_in_place
from bumblecore_core.values import StepEvent
from core.disk_order import recorded
from core.saver_runs import Run


def event(step):
    return StepEvent(step=step, epoch=0.0, split="train", time=0.0, metrics={"loss": 1.0})


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_of_a_run_and_the_history_that_it_counts_on(monkeypatch, tmp_path, background):
    made = Run(monkeypatch, tmp_path, save_steps=1, save_total_limit=1, background=background)
    with recorded(monkeypatch) as disk:
        made.train(3)
        assert disk.holds(tmp_path / HISTORY_LOG)
    assert disk.lost == []
    assert disk.renamed == [HISTORY_LOG, "checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_the_files_of_every_rank_and_those_that_an_engine_writes_elsewhere(monkeypatch, tmp_path):
    directory = tmp_path / "checkpoint-1"
    directory.mkdir()  # torn, so it is replaced

    def write(rank, temporary):
        own = rank_directory(temporary, rank) / "nested"
        own.mkdir()
        (own / "engine.json").write_text(f"rank {rank}")

    with recorded(monkeypatch) as disk:
        temporary = fresh_beside(directory)
        for rank in range(2):
            write_part(temporary, rank, partial(write, rank))
        (temporary / STATE / "zero.pt").write_text("elsewhere")
        commit(temporary, directory, world_size=2, facts={"step": 1})
    assert disk.lost == []
    assert disk.renamed == ["checkpoint-1"]


def test_the_earlier_directory_is_there_until_the_rename(monkeypatch, tmp_path):
    directory, temporary = tmp_path / "final", fresh_beside(tmp_path / "final")
    directory.mkdir()
    (directory / "config.json").write_text("old")
    (temporary / "config.json").write_text("new")
    rename, held = Path.rename, []

    def watched(source, target):
        if source == temporary:
            held.extend(path.read_text() for path in tmp_path.glob(".final.outgoing/config.json"))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", watched)
    put_in_place(temporary, directory)
    assert held == ["old"]
    assert (directory / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("older", [None, "older"])
def test_a_text_file_is_the_older_or_the_newer_one(monkeypatch, tmp_path, older):
    if older is not None:
        (tmp_path / "run.yaml").write_text(older)
    with recorded(monkeypatch, needs_directory=False) as disk:
        write_text(tmp_path / "run.yaml", "new")
    assert disk.lost == []
    assert disk.renamed == ["run.yaml"]
    assert (tmp_path / "run.yaml").read_text() == "new"


def test_events_that_are_appended_to_a_history(monkeypatch, tmp_path):
    with recorded(monkeypatch) as disk:
        history = HistoryFile(tmp_path)
        for step in (1, 2):
            history.append([event(step)])
            assert disk.holds(tmp_path / HISTORY_LOG)
    assert disk.lost == []
    assert disk.renamed == [HISTORY_LOG]


def test_token_shards(monkeypatch, data):
    monkeypatch.setattr(prepare_module, "StoreWriter", partial(StoreWriter, shard_bytes=64))
    path = data([f"row {row}" for row in range(30)])
    with recorded(monkeypatch) as disk:
        store = prepare(path)
    assert len(list(store.directory.glob("input_ids.0*.bin"))) > 2
    assert disk.lost == []
    assert disk.renamed == [store.directory.name]


@pytest.mark.parametrize("config", ["run.yaml", "another.yaml"])
def test_an_earlier_run_that_is_moved_aside_and_put_back(monkeypatch, tmp_path, config):
    (tmp_path / "run.yaml").write_text(HEADER)
    (tmp_path / "metrics.json").write_text("[]")
    resolved = SimpleNamespace(config=SimpleNamespace(output_dir=str(tmp_path)), path=tmp_path / config)
    moved = []
    with recorded(monkeypatch) as disk:
        for path in tmp_path.iterdir():
            with path.open("rb") as file:
                disk.fsync(file.fileno())  # as the earlier run did
        set_aside(resolved)
        moved += disk.renamed
        assert put_back(tmp_path)
    assert sorted(moved[:-1]) == ["metrics.json", "run.yaml"]
    assert moved[-1] == ".replaced"
    assert disk.lost == []
