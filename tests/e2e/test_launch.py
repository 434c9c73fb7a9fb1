"""`bumble run --nproc`: ranks are started, told of signals, ended together, and their end is told once."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from bumblecore_core.cli import elastic, main
from bumblecore_core.cli.launch import _for_ranks, bumble_command, launch
from bumblecore_core.errors import RunError
from bumblecore_core.registry import PluginSwitches
from bumblecore_core.toolkit import rank_errors
from warm_processes import WarmProcess
from workbench import pretrain_settings, write_config

SLURM = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
LEAVE = """
import json, os, pathlib, sys, time
rank = int(os.environ["RANK"])
def leave(code, text, foreign=False, defect=False, wait=0.0):
    time.sleep(wait)
    place = pathlib.Path(os.environ["BUMBLE_LAUNCHED"]) / f"rank-{rank}.json"
    place.write_text(json.dumps(dict(rank=rank, code=code, at=time.time(), text=text, foreign=foreign, defect=defect)))
    sys.exit(code)
"""


@pytest.fixture(autouse=True)
def _unnamed_events(monkeypatch):
    """torch names the function of each event of a rendezvous by searching all modules, of which tests have imported
    thousands: that takes seconds per launch."""
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    monkeypatch.setattr(dynamic_rendezvous, "get_method_name", lambda depth=2: "")


def ranks(code: str, count: int = 2) -> int:
    """Launches `code` in `count` processes."""
    return launch([sys.executable, "-c", LEAVE + code], count)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    return int(ended.value.code or 0)


def test_each_rank_gets_its_place_and_its_share_of_the_cores(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR")
    show = f"out = [os.environ[key] for key in {keys}]; open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(str(out))"
    assert ranks(show, 3) == 0
    threads = str(max(1, len(os.sched_getaffinity(0)) // 3))
    for rank in map(str, range(3)):
        assert (tmp_path / rank).read_text() == str([rank, rank, "3", threads, "127.0.0.1"])
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


def test_threads_that_the_user_set_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in _for_ranks(2, tmp_path)


def test_a_file_of_the_working_directory_hides_no_library_where_it_did_not(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path, os.getcwd()])
    assert _for_ranks(2, tmp_path)["PYTHONSAFEPATH"] == "1"
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert "PYTHONSAFEPATH" not in _for_ranks(2, tmp_path)


def test_one_rank_that_ends_without_a_word_ends_all_and_is_named(monkeypatch):
    monkeypatch.setattr(elastic, "GRACE", 1.0)
    started = time.monotonic()
    with pytest.raises(RunError, match=r"BC067: rank 1 of 2 was ended by SIGKILL, and the others were") as raised:
        ranks("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(600)")
    assert raised.value.exit_code == 137
    with pytest.raises(RunError, match=r"rank 0 of 2 ended with exit code 3 and said no reason") as raised:
        ranks("sys.exit(3) if rank == 0 else time.sleep(600)")
    assert raised.value.exit_code == 3
    assert time.monotonic() - started < 500  # nobody waited for the rank that sleeps


def test_the_first_failure_is_told_with_its_rank_and_what_followed_is_not(capfd):
    code = ranks("leave(2, 'BC057: diverged.') if rank == 1 else leave(2, 'BC067: gone.', foreign=True)")
    assert (code, capfd.readouterr().err) == (2, "rank 1: BC057: diverged.\n")
    code = ranks("leave(1, 'Traceback A', defect=True) if rank else leave(1, 'Traceback B', defect=True, wait=0.5)")
    assert (code, capfd.readouterr().err) == (1, "rank 1: Traceback A\n")
    with pytest.raises(RunError, match="rank 1 of 2 was ended by SIGSEGV"):
        ranks("os.kill(os.getpid(), 11) if rank == 1 else leave(2, 'BC067: gone.', foreign=True, wait=0.3)")


def test_what_all_ranks_say_is_told_once_and_what_they_say_otherwise_by_rank(capfd):
    assert ranks("leave(2, 'BC021: no file.')") == 2
    assert capfd.readouterr().err == "BC021: no file.\n"
    assert ranks("leave(2, f'BC041: no GPU {rank % 2}.', wait=rank / 5)", 3) == 2
    assert capfd.readouterr().err == "ranks 0, 2: BC041: no GPU 0.\nrank 1: BC041: no GPU 1.\n"


def test_a_rank_that_has_failed_and_hangs_is_ended_and_told(monkeypatch, capfd):
    monkeypatch.setattr(elastic, "GRACE", 1.0)
    hang = "if rank == 0: sys.exit = lambda code: time.sleep(600)\n"
    for other in ("time.sleep(600)", "leave(2, 'BC067: gone.', foreign=True)"):
        assert ranks(hang + f"leave(2, 'BC045: the disk is full.') if rank == 0 else {other}") == 2
        assert capfd.readouterr().err == "rank 0: BC045: the disk is full.\n"


def test_arguments_arrive_as_they_are(tmp_path):
    odd = ["$$", "${local_rank}", "$x", "a b", "'", "--"]
    code = f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(str(sys.argv[1:]))"
    assert launch([sys.executable, "-c", LEAVE + code, *odd], 2) == 0
    assert (tmp_path / "1").read_text() == str(odd)


HEED = """
import signal
got = []
def heed(number, frame):
    got.append(number)
    pathlib.Path(f"heeded-{rank}").touch()
signal.signal(signal.SIGTERM, heed)
signal.signal(signal.SIGINT, heed)
pathlib.Path(f"ready-{rank}").touch()
"""
UNTIL_TOLD = (
    HEED + "while not got: time.sleep(0.01)\ntime.sleep(0.5 * (1 - rank))\nopen(f'got-{rank}', 'w').write(str(got))\n"
)


def launcher(directory: Path, code: str) -> WarmProcess:
    """A process that launches `code`, once all of its ranks are there."""
    command = [sys.executable, "-c", LEAVE + code]
    script = "import sys; from bumblecore_core.cli import elastic; from bumblecore_core.cli.launch import launch\n"
    script += f"elastic.HURRY = 0.5; sys.exit(launch({command!r}, 2))"
    process = WarmProcess("-c", script, cwd=directory)
    process.wait_for(lambda: len(list(directory.glob("ready-*"))) == 2)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_reaches_each_rank_once(tmp_path, number):
    process = launcher(tmp_path, UNTIL_TOLD + "sys.exit(128 + got[0])")
    process.send_signal(number)
    done = process.end()
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == 128 + number
    assert [(tmp_path / f"got-{rank}").read_text() for rank in range(2)] == [str([int(number)])] * 2


def test_a_second_ctrl_c_ends_ranks_that_heed_nothing(tmp_path):
    process = launcher(tmp_path, HEED + "while True: time.sleep(1)")
    process.send_signal(signal.SIGINT)
    process.wait_for(lambda: len(list(tmp_path.glob("heeded-*"))) == 2)
    assert process.running()
    process.send_signal(signal.SIGINT)
    assert process.end().returncode != 0


def test_nproc_counts(monkeypatch, capsys, tmp_path):
    import torch

    from bumblecore_core.cli import run as command

    asked = []
    monkeypatch.setattr(command, "launch", lambda line, processes: asked.append(processes) or 0)
    monkeypatch.setattr(command, "_checked", lambda *rest, **more: [])
    monkeypatch.setattr(command, "_train", lambda *rest, **more: asked.append("here") or 0)
    for gpus, value in ((0, "auto"), (0, "gpu"), (3, "auto"), (2, "gpu"), (2, "1"), (0, "2")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert run("run", "--nproc", value, "run.yaml") == 0
    assert asked == ["here", "here", 3, 2, "here", 2]
    for value in ("0", "-1", "many", "²"):
        assert run("run", "--nproc", value, "run.yaml") == 2
        assert "neither a number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("place", [{"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"RANK": "0"}, SLURM])
def test_nproc_within_a_launch_is_refused(place, monkeypatch, capsys):
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(rank_errors, "LINGER", 0.0)
    assert run("run", "--nproc", "2", "run.yaml") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rank 0 ({socket.gethostname()}): BC067 --nproc: ")
    assert all(f"{key}={value}" in said for key, value in place.items() if key != "SLURM_LOCALID")
    assert said.count("\n") == 1


def test_an_error_of_the_config_is_told_before_any_rank_starts(tmp_path, monkeypatch, capsys):
    from bumblecore_core.cli import run as command

    monkeypatch.setattr(command, "launch", lambda *rest: pytest.fail("ranks were started"))
    settings = pretrain_settings(tmp_path)
    config = write_config(tmp_path / "run.yaml", **settings, optimiser={})
    alone, alone_said = run("run", config), capsys.readouterr()
    assert run("run", "--nproc", "2", config) == alone == 2
    assert capsys.readouterr() == alone_said
    assert alone_said.err.startswith("BC034")


def test_the_ranks_command_has_the_callers_choices(tmp_path, monkeypatch):
    from bumblecore_core.cli import run as command

    lines = []
    monkeypatch.setattr(command, "launch", lambda line, processes: lines.append(line) or 0)
    monkeypatch.setattr(command, "_checked", lambda *rest, **more: [])
    options = ["--set", "train.seed=1", "--overwrite", "--resume", "never", "--allow", "data", "--profile-plugins"]
    assert run("--no-plugins", "run", "--nproc", "2", *options, "a.yaml", "b.yaml") == 0
    start = bumble_command(PluginSwitches(builtins_only=True))
    assert start == [sys.executable, "-m", "bumblecore_core", "--no-plugins"]
    settings = ["--set=train.seed=1", '--set=checkpoint.resume="never"', '--set=checkpoint.allow=["data"]']
    assert lines == [[*start, "run", *settings, "--overwrite", "--profile-plugins", "--", "a.yaml", "b.yaml"]]
