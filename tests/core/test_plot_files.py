"""Pictures as files, and what drawing leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bumblecore_core import RunError
from bumblecore_core.toolkit.plots import training_figure, write_figure
from core.plot_runs import a_run


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize("smooth", [True, False])
def test_the_picture_is_about_1200_pixels_wide_and_not_blank(tmp_path, smooth):
    write_figure(training_figure(a_run(200), smooth=smooth, title="sft: mine"), tmp_path / "loss.png")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    found = pixels(tmp_path / "loss.png")
    assert found.shape[1] == 1200
    dark = (found[..., :3].min(axis=2) < 0.6).any(axis=0)
    assert dark.mean() > 0.8, "the curve goes across the picture"


def test_the_suffix_decides(tmp_path):
    figure = training_figure(a_run(20), smooth=True, title="")
    for name, beginning in (("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG")):
        write_figure(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(beginning)
    with pytest.raises(RunError, match="BC061"):
        write_figure(figure, tmp_path / "a.bmp")


def test_a_picture_that_cannot_be_written_leaves_what_was_there(tmp_path):
    figure = training_figure(a_run(20), smooth=True, title="")
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.png").mkdir()
    for path in (tmp_path / "absent" / "a.png", tmp_path / "file" / "a.png", tmp_path / "taken.png"):
        with pytest.raises(RunError, match="BC042"):
            write_figure(figure, path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_leaves_the_picture_that_was_there(tmp_path):
    (tmp_path / "a.png").write_bytes(b"earlier")
    (tmp_path / ".a.png.writing").symlink_to("/dev/full")
    with pytest.raises(RunError, match="No space left"):
        write_figure(training_figure(a_run(20), smooth=True, title=""), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"earlier"


STATE = """
import sys, matplotlib
before = matplotlib.rcParams.copy()
sys.path.insert(0, {tests!r})
from bumblecore_core.toolkit.plots import overlay_figure, panels_figure, training_figure, write_figure
from core.plot_runs import a_run, record
from pathlib import Path
write_figure(training_figure(a_run(50), smooth=True, title="x"), Path("a.png"))
write_figure(panels_figure(a_run(50), ["tokens"], title="x"), Path("b.svg"))
write_figure(overlay_figure([record("a", a_run(50))]), Path("c.pdf"))
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""


def test_global_state_is_left_alone(tmp_path):
    environ = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    command = [sys.executable, "-c", STATE.format(tests=str(Path(__file__).parents[1]))]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 3


def test_threads_draw_what_one_alone_draws(tmp_path):
    def draw(name):
        write_figure(training_figure(a_run(150), smooth=True, title="sft"), tmp_path / name)

    threads = [threading.Thread(target=draw, args=(f"{at}.png",)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    draw("alone.png")
    alone = pixels(tmp_path / "alone.png")
    assert all(np.array_equal(pixels(tmp_path / f"{at}.png"), alone) for at in range(3))
