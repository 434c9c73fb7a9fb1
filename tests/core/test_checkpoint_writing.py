"""What each rank writes of a checkpoint, the weights that are refused, and the final model."""

from __future__ import annotations

import errno
import json
import math

import pytest
import torch

from bumblecore_core.errors import RunError
from bumblecore_core.run.checkpoint.final import save_final
from bumblecore_core.run.checkpoint.manifest import faults, read_manifest
from bumblecore_core.run.checkpoint.writing import PART, STATE, commit, rank_directory, require_finite, write_part
from bumblecore_core.run.files import fresh_beside
from bumblecore_core.run.lock import lock_digest
from bumblecore_core.run.loggers import Loggers
from core.saver_runs import LOCK, Engine, Parts, Recorder


def test_each_rank_describes_its_own_files_and_rank_0_those_of_all(tmp_path):
    temporary = fresh_beside(tmp_path / "checkpoint-1")
    half_written = rank_directory(temporary, 1) / "engine.json"
    half_written.parent.mkdir(parents=True)
    half_written.write_text("half of")

    def write_first(directory):
        (directory / "weights").write_text("weights")
        (directory / STATE / "progress.json").write_text("{}")
        (rank_directory(directory, 0) / "engine.json").write_text("rank 0")

    def write_second(directory):
        half_written.write_text("half of it and the rest")

    write_part(temporary, 0, write_first)
    write_part(temporary, 1, write_second)
    listed = [sorted(json.loads((rank_directory(temporary, rank) / PART).read_text())) for rank in (0, 1)]
    assert listed == [
        [f"{STATE}/progress.json", f"{STATE}/rank-0/engine.json", "weights"],
        [f"{STATE}/rank-1/engine.json"],
    ]
    (temporary / "zero.pt").write_text("an engine wrote it")
    commit(temporary, tmp_path / "checkpoint-1", world_size=2, facts={"step": 1})
    assert faults(tmp_path / "checkpoint-1") == []
    assert sorted(read_manifest(tmp_path / "checkpoint-1").files) == sorted([*listed[0], *listed[1], "zero.pt"])


def test_no_directory_is_kept_for_a_state_that_is_empty(tmp_path):
    temporary = fresh_beside(tmp_path / "final")
    write_part(temporary, 0, lambda directory: (directory / "weights").write_text("weights"))
    commit(temporary, tmp_path / "final", world_size=1, facts={"step": 1})
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == ["manifest.json", "weights"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bc072_one_value_that_is_not_finite_is_refused_by_name(tmp_path, value, dtype):
    state = {name: torch.linspace(-1, 1, 7, dtype=dtype) for name in "abcdef"}
    state |= {"whole": torch.tensor([2**31 - 1]), "empty": torch.zeros(0)}
    require_finite(state, tmp_path)
    for count, names in enumerate(("(a)", "(a, b)", "(a, b, c)", "(a, b, c …)"), 1):
        state["abcd"[count - 1]][3] = value
        with pytest.raises(RunError) as caught:
            require_finite(state, tmp_path)
        assert f"BC072 {tmp_path}" in str(caught.value)
        assert f"{count} of 8 weights are not finite {names}" in str(caught.value)


@pytest.fixture
def final(tmp_path):
    """Saves the final model; (parts, the logger)."""
    parts, recorder = Parts(), Recorder()
    parts.gate.set()

    def save(step, *, rank=0):
        loggers = Loggers([("recorder", recorder)])
        return save_final(parts, Engine(rank=rank), loggers, tmp_path / "final", step=step, lock=LOCK)

    return save, parts, recorder


def test_the_final_model_names_its_step_and_what_it_was_made_from(final, tmp_path):
    save, _, recorder = final
    for step in (4, 9):  # the second replaces the first
        assert save(step) == tmp_path / "final"
        assert read_manifest(tmp_path / "final").facts == {"step": step, "lock": lock_digest(LOCK)}
        assert faults(tmp_path / "final") == []
    assert recorder.directories == [tmp_path / "final"] * 2


def test_a_final_model_that_cannot_be_written_leaves_the_earlier_one_and_frees_the_room(final, tmp_path):
    save, parts, recorder = final
    save(4)
    parts.failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunError, match="BC045"):
        save(9)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert read_manifest(tmp_path / "final").step == 4
    assert len(recorder.directories) == 1


def test_other_ranks_write_no_final_model(final, tmp_path):
    final[0](4, rank=1)
    assert list(tmp_path.iterdir()) == []
