"""Heartbeats: a living rank is waited for, a silent one ends the others, a signal ends a process that hangs."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch.distributed as dist

from bumblecore_core import RunError
from bumblecore_plugins.engines import heartbeat
from bumblecore_plugins.engines.heartbeat import Heartbeat

LIMIT, RAISING = 1.0, 0.3


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(heartbeat, "SHORTEST_LIMIT", LIMIT)
    monkeypatch.setattr(heartbeat, "GONE_ON_SIGNAL", 0.2)
    monkeypatch.setattr(heartbeat, "RAISING", RAISING)
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


@contextmanager
def beating(store, count: int, limit: float = LIMIT):
    """Heartbeats of the first `count` of three ranks, and for each the errors that it was ended with."""
    ended = [[] for _ in range(count)]
    made = [Heartbeat(store, rank=rank, world_size=3, limit=limit, end=ended[rank].append) for rank in range(count)]
    try:
        yield made, ended
    finally:
        for one in made:
            one.fail()  # as if the run had failed: nobody waits for the others
        for one in reversed(made):
            one.stop()


def until(there) -> None:
    end = time.monotonic() + 300  # a safety net on a loaded machine
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_rank_that_works_longer_than_the_limit_is_waited_for(store):
    with beating(store, 3) as (made, ended):
        met = []
        for one in made[:2]:
            threading.Thread(target=lambda one=one: met.append(one.meet()), daemon=True).start()
        time.sleep(1.5 * LIMIT)
        assert met == []
        made[2].meet()
        until(lambda: met == [None, None])
        assert ended == [[], [], []]
        assert [one.silent() for one in made] == ["", "", ""]


def test_a_silent_rank_is_named_on_all_others(store):
    host = socket.gethostname()
    with beating(store, 2) as (made, ended):
        store.set("beat-2", f"1 0 0 elsewhere {host}")  # one heartbeat, and no more
        until(lambda: ended[0] and ended[1])
        for errors in ended:
            assert errors[0].exit_code == 2
            assert f"BC067: no heartbeat of rank 2 on {host} for " in str(errors[0])
        with pytest.raises(RunError, match=f"BC067: no heartbeat of rank 2 on {host}"):
            made[1].meet()


def test_a_process_that_died_or_left_is_not_waited_for(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with beating(store, 2, limit=6 * LIMIT) as (made, _):
        store.set("beat-2", f"1 0 {dead.pid} {heartbeat._machine()} node")
        for rank in range(2):
            with pytest.raises(RunError, match="BC067: rank 2 on node has ended"):
                made[rank].meet()
    with beating(dist.PrefixStore("second", store), 3, limit=6 * LIMIT) as (made, _):
        until(lambda: all(peer.value for one in made for peer in one._peers))
        made[2].fail()
        made[2].stop()
        made[0]._wake.set()  # its next heartbeat is due in seconds
        with pytest.raises(RunError, match=f"BC067: rank 2 on {socket.gethostname()} has ended"):
            made[0].meet()


def test_a_signal_ends_a_process_that_waits_for_a_silent_rank(store):
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with beating(store, 1, limit=2 * LIMIT) as (_, ended):
            os.kill(os.getpid(), signal.SIGTERM)
            store.set("beat-2", f"1 0 0 elsewhere {socket.gethostname()}")
            until(lambda: ended[0])
            assert ended[0][0].exit_code == 128 + signal.SIGTERM
            assert "BC067: SIGTERM, and no heartbeat of rank" in str(ended[0][0])
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_alone_ends_nothing_and_a_raised_error_has_time_to_clean_up(store, monkeypatch):
    monkeypatch.setattr(heartbeat, "GONE_ON_SIGNAL", 15.0)  # a loaded machine may delay a heartbeat by a second
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with beating(store, 3, limit=20.0) as (_, ended):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0)
            assert ended == [[], [], []]
    finally:
        signal.signal(signal.SIGTERM, before)
    with beating(dist.PrefixStore("second", store), 1) as (made, ended):
        made[0].fail()
        until(lambda: made[0].lost())
        time.sleep(RAISING + LIMIT / 20 + 0.3)
        assert ended == [[]]
