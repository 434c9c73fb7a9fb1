"""A disk that is full or broken at any write of a run: coded lines and no traceback, and the next attempt succeeds."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

from bumblecore_core.cli import main
from bumblecore_core.cli.launch import launch
from bumblecore_core.errors import RunError
from bumblecore_core.run.checkpoint.manifest import faults
from bumblecore_core.run.console import say
from full_disk import full_disk
from workbench import pretrain_settings, workbench, write_config

ERROR = re.compile(r"BC04[25] ")
ALLOWED = re.compile(r"warning: BC04[25] logger|step |saved |BC04[25] |$")
SAMPLES = 12


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return workbench(tmp_path_factory.mktemp("disk"))


def config_of(bench, *, background: bool):
    """A run with evaluation, two checkpoints and every logger that writes files here, which starts from nothing."""
    for name in ("pretrain", "cache"):
        shutil.rmtree(bench / name, ignore_errors=True)
    settings = pretrain_settings(bench, max_steps=2, eval_steps=1)
    settings["data"]["eval_split"] = 0.2
    settings["loggers"] = ["progress", "log_file", "metrics_json", "csv", "tensorboard", "loss_plot"]
    settings["checkpoint"] = {"save_steps": 1, "background": background}
    return write_config(bench / "run.yaml", **settings)


def run(config) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config)])
    return int(ended.value.code or 0)


def attempt(bench, monkeypatch, capsys, first, **options):
    """Operations counted in a run that meets such a disk."""
    config = config_of(bench, background=bool(first and first % 2))
    with full_disk(monkeypatch, bench, first, **options) as disk:
        code = run(config)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not ALLOWED.match(line)] == []
    assert code in (0, 2)
    assert sum(bool(ERROR.match(line)) for line in lines) == (code == 2)
    final = bench / "pretrain" / "final"
    assert code == 2 or faults(final) == []
    if code == 2:
        assert run(config) == 0  # once there is room
        assert faults(final) == []
        capsys.readouterr()
    return disk.count


def attempts(bench, monkeypatch, capsys, places, **options):
    total = attempt(bench, monkeypatch, capsys, None)
    assert total > 200
    for first in places(total):
        attempt(bench, monkeypatch, capsys, first, **options)


@pytest.mark.parametrize("share", [0.1, pytest.param(0.4, marks=pytest.mark.slow), 0.9])
def test_a_disk_that_fills_up(bench, monkeypatch, capsys, share):
    attempts(bench, monkeypatch, capsys, lambda total: [int(share * total)])


@pytest.mark.slow
def test_one_write_that_fails(bench, monkeypatch, capsys):
    places = lambda total: range(3, total, total // SAMPLES)  # noqa: E731
    attempts(bench, monkeypatch, capsys, places, number=errno.EIO, persistent=False)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "persistent"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_every_write(bench, monkeypatch, capsys, number, persistent):
    attempts(bench, monkeypatch, capsys, lambda total: range(1, total + 1), number=number, persistent=persistent)


def test_no_temporary_directory_for_ranks(monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(RunError, match=r"BC045 .*TMPDIR: no temporary directory can be created"):
        launch([sys.executable], 2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_under_standard_output_is_one_line():
    command = [sys.executable, "-m", "bumblecore_core", "config", "schema"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("BC045")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_run_whose_output_is_on_a_full_disk_trains(bench):
    config = config_of(bench, background=False)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "bumblecore_core", "run", str(config)]
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 0
    assert faults(bench / "pretrain" / "final") == []


def test_a_line_that_cannot_be_printed_does_not_raise(monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    silenced = []
    monkeypatch.setattr("bumblecore_core.run.console.silence", silenced.append)
    monkeypatch.setattr(sys, "stderr", Full())
    say("something")
    assert silenced == [2]
