"""Files of a run have the permissions that the umask leaves, also those that safetensors writes for the owner alone."""

import os
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bumblecore_core.run.checkpoint.writing import commit, rank_directory, write_part
from bumblecore_core.run.reference_cache import write_figures
from bumblecore_core.toolkit.permissions import umask
from bumblecore_core.toolkit.state_files import write_state


def modes(directory):
    return {stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(params=[(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def mode(request):
    mask, expected = request.param
    before = os.umask(mask)
    yield expected
    os.umask(before)


def test_checkpoints(tmp_path, mode):
    temporary = tmp_path / ".checkpoint-1.writing"
    for rank in range(2):
        write_part(
            temporary, rank, lambda place, rank=rank: write_state(rank_directory(place, rank), "x", torch.zeros(1))
        )
    save_file({"late": torch.zeros(1)}, temporary / "model.safetensors")
    commit(temporary, tmp_path / "checkpoint-1", world_size=2, facts={})
    assert len(list((tmp_path / "checkpoint-1").rglob("*.safetensors"))) == 3
    assert modes(tmp_path) == {mode}


def test_reference_log_probabilities(tmp_path, mode):
    write_figures(tmp_path / "cache" / "figures", {"a": np.zeros(2)})
    assert modes(tmp_path) == {mode}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_the_umask_is_read_with_and_without_the_systems_help(mask, monkeypatch):
    before = os.umask(mask)
    try:
        found = umask()
        monkeypatch.setattr("builtins.open", lambda *arguments, **options: (_ for _ in ()).throw(OSError()))
        assert (found, umask()) == (mask, mask)
    finally:
        assert os.umask(before) == mask
