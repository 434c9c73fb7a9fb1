"""One of a run's processes verifies or rebuilds token shards, and the others take over what it found."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest
from data_stages import prepare, tokens

from bumblecore_core.run.data import cache, verified
from bumblecore_core.run.data import store as store_module

TEXTS = [f"row {index}" for index in range(60)]


def damage(store):
    """Replaces a file of the shards by zeros."""
    file = store.directory / "lengths.bin"
    file.write_bytes(bytes(file.stat().st_size))


def verify_and_report(directory, since, barrier, results):
    os.chdir(directory)
    calls, damaged = [], store_module.TokenStore.damaged
    store_module.TokenStore.damaged = lambda store: calls.append(None) or damaged(store)
    barrier.wait()
    store = prepare("a.jsonl", cache_dir="cache", since=since)
    results.put((len(calls), store.report.warnings, tokens(store) == TEXTS))


@pytest.mark.parametrize("harmed", [False, True])
def test_one_of_a_runs_processes_verifies(data, tmp_path, harmed):
    store = prepare(data(TEXTS), cache_dir="cache")
    if harmed:
        damage(store)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (tmp_path, time.time(), barrier, results)
    workers = [context.Process(target=verify_and_report, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(calls for calls, _, _ in found) == 1
    assert [(warnings, same) for _, warnings, same in found] == [({"BC075": 1} if harmed else {}, True)] * 3


@pytest.mark.parametrize("damaged", [False, True])
def test_shards_are_opened_before_they_are_replaced_or_after_their_verdict_is_noted(data, monkeypatch, damaged):
    """A process that comes right after the rename must not hash what the builder has hashed, nor miss its count."""
    path, since, results = data(TEXTS), time.time(), []
    if damaged:
        damage(prepare(path))
    rename, flock, asks = cache._rename, verified.fcntl.flock, threading.Event()
    hashed, other = [], threading.Thread(target=lambda: results.append(prepare(path, since=since).report.warnings))
    file_hash = store_module.file_hash

    def renamed(temporary, directory):
        rename(temporary, directory)
        hashed.clear()
        other.start()
        assert asks.wait(60)
        other.join(timeout=0.2)  # it could end now only without waiting

    def watched(descriptor, operation):
        if threading.current_thread() is other:
            asks.set()
        return flock(descriptor, operation)

    monkeypatch.setattr(cache, "_rename", renamed)
    monkeypatch.setattr(verified.fcntl, "flock", watched)
    monkeypatch.setattr(store_module, "file_hash", lambda path, stop: hashed.append(path) or file_hash(path, stop))
    built = prepare(path, since=since)
    other.join()
    assert results == [built.report.warnings] == [{"BC075": 1} if damaged else {}]
    assert hashed == []
