"""Hashes of files are remembered for exactly as long as the files stay the same."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time

import pytest

from bumblecore_core.run import hashing
from bumblecore_core.run.hashing import Cancelled, file_hash, in_threads, remembered_hash, remembered_hashes


@pytest.fixture
def reads(monkeypatch):
    """Counts the files that are read; files settle at once."""
    found, read = [], hashing._hash

    def counted(file, stop):
        found.append(file.name)
        return read(file, stop)

    monkeypatch.setattr(hashing, "_hash", counted)
    monkeypatch.setattr(hashing, "SETTLED_SECONDS", -1e9)
    return found


def written(path, data):
    path.write_bytes(data)
    return path


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_every_byte_counts_over_block_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "BLOCK", 7)
    for data in (b"", b"x", os.urandom(7), os.urandom(1000)):
        assert file_hash(written(tmp_path / "file", data)) == digest(data)


def test_a_file_that_stays_the_same_is_read_once(tmp_path, reads):
    file = written(tmp_path / "file", b"abc")
    assert {remembered_hash(file, tmp_path / "cache") for _ in range(3)} == {digest(b"abc")}
    (tmp_path / "link").symlink_to(file)
    assert remembered_hash(tmp_path / "link", tmp_path / "cache") == digest(b"abc")
    assert len(reads) == 1


@pytest.mark.parametrize("replaced", [False, True], ids=["in place", "by a rename"])
def test_other_content_of_the_same_size_and_time_is_noticed(tmp_path, reads, replaced):
    file = written(tmp_path / "file", b"abc")
    times = file.stat()
    assert remembered_hash(file, tmp_path / "cache") == digest(b"abc")
    time.sleep(0.05)  # longer than a tick of the clock that change times are taken from
    target = tmp_path / "other" if replaced else file
    target.write_bytes(b"xyz")
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    if replaced:
        target.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert remembered_hash(file, tmp_path / "cache") == digest(b"xyz")


def test_a_file_that_was_changed_just_now_is_not_remembered(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(hashing, "SETTLED_SECONDS", 1e9)
    file = written(tmp_path / "file", b"abc")
    for _ in range(2):
        remembered_hash(file, tmp_path / "cache")
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(tmp_path, reads, monkeypatch):
    file, counted = written(tmp_path / "file", b"abc"), hashing._hash

    def growing(opened, stop):
        found = counted(opened, stop)
        if len(reads) == 1:
            time.sleep(0.05)
            file.write_bytes(b"abcd")
        return found

    monkeypatch.setattr(hashing, "_hash", growing)
    remembered_hash(file, tmp_path / "cache")
    assert remembered_hash(file, tmp_path / "cache") == digest(b"abcd")


def test_a_damaged_note_is_made_again(tmp_path, reads):
    file, cache = written(tmp_path / "file", b"abc"), tmp_path / "cache"
    remembered_hash(file, cache)
    (note,) = (cache / "hashes").iterdir()
    intact = note.read_bytes()
    for at in range(len(intact)):
        note.write_bytes(intact[:at] + bytes([intact[at] ^ 1]) + intact[at + 1 :])
        assert remembered_hash(file, cache) == digest(b"abc")
    for data in (b"", intact[:-1], intact + b"x", b"\xff" * len(intact), digest(b"x").encode() * 2):
        note.write_bytes(data)
        assert remembered_hash(file, cache) == digest(b"abc")
        assert note.read_bytes()[: len(intact)] == intact


@pytest.mark.parametrize("obstacle", ["file", "directory", "fifo"])
def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, reads, obstacle):
    file, cache = written(tmp_path / "file", b"abc"), tmp_path / "cache"
    if obstacle == "file":
        cache.write_bytes(b"")
    else:
        remembered_hash(file, cache)
        (note,) = (cache / "hashes").iterdir()
        note.unlink()
        note.mkdir() if obstacle == "directory" else os.mkfifo(note)
    assert {remembered_hash(file, cache) for _ in range(2)} == {digest(b"abc")}


def test_processes_that_want_the_same_hash_wait_for_the_first(tmp_path, reads):
    file, cache = written(tmp_path / "file", b"abc"), tmp_path / "cache"
    remembered_hash(file, cache)
    (note,) = (cache / "hashes").iterdir()
    intact = note.read_bytes()
    note.write_bytes(b"")
    with note.open("r+b") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        found = []
        waiting = threading.Thread(target=lambda: found.append(remembered_hash(file, cache)))
        waiting.start()
        time.sleep(0.2)
        assert not found
        first.write(intact)
        first.flush()
        fcntl.flock(first, fcntl.LOCK_UN)
    waiting.join()
    assert found == [digest(b"abc")]
    assert len(reads) == 1


def test_many_files_keep_their_order(tmp_path, reads):
    files = [written(tmp_path / str(index), b"%d" % index) for index in range(40)]
    expected = [digest(b"%d" % index) for index in range(40)]
    assert [remembered_hashes(files, tmp_path / "cache") for _ in range(2)] == [expected, expected]
    assert len(reads) == 40
    assert in_threads(lambda item, stop: item, []) == []


def test_a_failure_ends_the_other_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing.os, "cpu_count", lambda: 2)
    started = threading.Event()

    def action(item, stop):
        if item == "fails":
            assert started.wait(60)
            raise KeyError(item)
        started.set()
        assert stop.wait(60), "the other thread was not told"
        with pytest.raises(Cancelled):
            file_hash(written(tmp_path / "file", b"abc"), stop)

    with pytest.raises(KeyError):
        in_threads(action, ["fails", "waits"])


def test_waiting_for_another_process_can_be_given_up(tmp_path, reads):
    file, cache, stop = written(tmp_path / "file", b"abc"), tmp_path / "cache", threading.Event()
    remembered_hash(file, cache)
    (note,) = (cache / "hashes").iterdir()
    note.write_bytes(b"")
    stop.set()
    with note.open("r+b") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(Cancelled):
            remembered_hash(file, cache, stop)
