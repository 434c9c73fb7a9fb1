"""How a rank reports its error: once on each machine, with rank and host, or to `bumble run --nproc`."""

import json
import os
import socket
import sys

import pytest

from bumblecore_core.errors import ConfigError, DataError, RunError, one
from bumblecore_core.toolkit import rank_errors
from bumblecore_core.toolkit.rank_errors import end_process, print_rank_error

ERROR = one(DataError, "BC021", "nothing there", "Look", field="data.path")


@pytest.fixture
def ranks(monkeypatch):
    """Sets the place in the launch; nothing is waited for."""
    monkeypatch.setattr(rank_errors, "LINGER", 0.0)

    def place(rank: int, port: str = "29511") -> None:
        for key, value in {
            "RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_RANK": 0,
            "MASTER_ADDR": "h",
            "MASTER_PORT": port,
        }.items():
            monkeypatch.setenv(key, str(value))

    return place


def test_an_error_of_any_rank_is_printed_with_rank_and_host(ranks, capsys):
    for rank in (0, 1):
        ranks(rank)
        print_rank_error(ERROR)
        printed = f"rank {rank} ({socket.gethostname()}): BC021 data.path: nothing there. Look.\n"
        assert capsys.readouterr().err == printed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses Linux's abstract socket names")
def test_the_same_error_of_two_living_ranks_is_printed_once(ranks, capsys, monkeypatch):
    ranks(1)

    def meanwhile(seconds: float) -> None:
        ranks(0)
        print_rank_error(ERROR)  # the same
        monkeypatch.setattr(rank_errors.time, "sleep", lambda seconds: None)
        print_rank_error(one(ConfigError, "BC034", "another", "Fix"))
        ranks(0, port="29512")
        print_rank_error(ERROR)  # of another launch

    monkeypatch.setattr(rank_errors.time, "sleep", meanwhile)
    print_rank_error(ERROR)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] + line.partition("):")[2][:6] for line in lines] == [
        "rank 1 BC021",
        "rank 0 BC034",
        "rank 0 BC021",
    ]


def test_a_single_process_prints_no_rank(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    print_rank_error(ERROR)
    assert capsys.readouterr().err == "BC021 data.path: nothing there. Look.\n"


def test_a_launch_that_is_wrong_is_itself_reported(ranks, capsys, monkeypatch):
    ranks(1)
    monkeypatch.delenv("MASTER_ADDR")
    print_rank_error(ERROR)
    assert capsys.readouterr().err.startswith("rank 1 (")


def test_a_process_that_is_ended_reports_to_the_launcher_or_the_terminal(ranks, capsys, monkeypatch, tmp_path):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    ranks(1)
    end_process(one(RunError, "BC067", "rank 0 is gone", "Look"))
    assert "BC067: rank 0 is gone" in capsys.readouterr().err
    monkeypatch.setenv(rank_errors.LAUNCHED, str(tmp_path))
    end_process(one(RunError, "BC067", "rank 0 is gone", "Look"))
    left = json.loads((tmp_path / "rank-1.json").read_text())
    assert (left["rank"], left["code"], left["foreign"], codes) == (1, 2, True, [2, 2])
    assert capsys.readouterr().err == ""
