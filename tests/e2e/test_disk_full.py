"""A disk that fills up while a checkpoint is written, for real, where this machine lets a test mount a small one."""

import subprocess

import pytest

from bumblecore_core.run.checkpoint.folder import list_checkpoints
from bumblecore_core.run.checkpoint.manifest import faults
from resume_runs import run
from workbench import pretrain_settings, workbench

SIZES = ("1000k", "1100k", "1200k")  # room for one or two checkpoints of 0.4 MB; full in different files


@pytest.fixture(params=SIZES)
def small_disk(request, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a logger that found no room may hold a file


@pytest.mark.parametrize("background", [True, False])
def test_the_run_ends_with_an_error_and_the_old_checkpoints_are_whole(tmp_path, small_disk, background, capsys):
    bench = workbench(tmp_path)
    settings = {**pretrain_settings(bench, max_steps=8), "output_dir": str(small_disk / "run")}
    settings["checkpoint"] = {"save_steps": 2, "save_total_limit": None, "background": background}
    assert run(bench, settings) == 2
    assert "BC045" in capsys.readouterr().err
    checkpoints = list_checkpoints(small_disk / "run")
    assert checkpoints
    assert [faults(checkpoint.path) for checkpoint in checkpoints] == [[]] * len(checkpoints)
    assert not list((small_disk / "run").glob(".*.writing"))
    settings["checkpoint"]["save_total_limit"] = 1
    assert run(bench, settings, "--resume", str(checkpoints[-1].path)) in (0, 2)  # whichever, it starts from there
    assert f"{checkpoints[-1].path.name}, after step" in capsys.readouterr().out
