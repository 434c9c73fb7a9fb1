"""Damaged token shards are never trained on: whatever happened to the cache, they are built again and counted."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time

import pytest
from data_stages import ByteStage, prepare, tokens

from bumblecore_core.errors import DataError
from bumblecore_core.run.data import store as store_module
from bumblecore_core.run.data import verified
from bumblecore_core.run.data.store import META
from bumblecore_core.run.signed_json import read_signed, sign

TEXTS = [f"row {index} {'word ' * (index % 9)}" for index in range(60)]


@pytest.fixture
def kept(data, monkeypatch):
    """The directory of token shards that an earlier run has made of `a.jsonl`, and everything that they hold."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of builds; nothing loses its power here
    store = prepare(data(TEXTS))
    assert store.report.warnings == {}
    return store.directory, contents(store)


def contents(store):
    return (
        tokens(store),
        [store.example(index)["spans"].tolist() for index in range(len(store))],
        [store.locate(index) for index in range(len(store))],
        *(array.tolist() for array in (store.lengths, store.counts, store.sources)),
        store.content,
    )


def check_rebuilt(expected, damaged=1):
    """The next run builds the shards again, says so, and the one after it has nothing to say."""
    again = prepare("a.jsonl")
    assert not again.report.reused
    assert contents(again) == expected
    assert again.report.warnings == {"BC075": damaged}
    assert again.report.warning_lines() == [f"BC075 damaged cache files were rebuilt: {damaged}"]
    last = prepare("a.jsonl")
    assert last.report.reused
    assert last.report.warnings == {}


def test_a_flipped_bit_anywhere_in_any_file_is_noticed(kept):
    directory, expected = kept
    generator = random.Random(0)
    names = sorted(path.name for path in directory.iterdir())
    assert len(names) == 9
    for name in names:
        size = (directory / name).stat().st_size
        for at in {0, size - 1, *(generator.randrange(size) for _ in range(4))}:
            flipped = bytearray((directory / name).read_bytes())
            at = min(at, len(flipped) - 1)  # meta.json holds the seconds that it took, whose digits vary
            flipped[at] ^= 1 << generator.randrange(8)
            (directory / name).write_bytes(flipped)
            check_rebuilt(expected)


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def directory_instead(path):
    path.unlink()
    path.mkdir()


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("harm", [zeroed, truncated, longer, os.unlink, fifo, directory_instead, dangling])
def test_any_file_in_any_state_is_built_again(kept, harm):
    directory, expected = kept
    for name in sorted(path.name for path in directory.iterdir()):
        if harm is zeroed and not any((directory / name).read_bytes()):
            continue
        harm(directory / name)
        check_rebuilt(expected)


@pytest.mark.parametrize("what", ["nothing", "file", "link", "empty"])
def test_something_else_in_the_place_of_the_shards(kept, what):
    directory, expected = kept
    shutil.rmtree(directory)
    if what == "file":
        directory.write_bytes(b"x")
    elif what == "link":
        directory.symlink_to("nowhere")
    elif what == "empty":
        directory.mkdir()
    if what == "nothing":
        assert contents(prepare("a.jsonl")) == expected
        assert prepare("a.jsonl").report.warnings == {}
    else:
        check_rebuilt(expected)


def test_several_damaged_files_are_counted(kept):
    directory, expected = kept
    for name in ("input_ids.00000.bin", "lengths.bin", "lines.bin"):
        truncated(directory / name)
        (directory / name).write_bytes((directory / name).read_bytes() + b"\x7f")
    check_rebuilt(expected, damaged=3)


HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"version": ' + b"9" * 5000 + b"}",
    b"\xff\xfe\x00",
    b'{"sha256": {}}',
    b'{"sha256": NaN, "a": Infinity}',
    json.dumps({"version": 2, "fingerprint": "f", "files": []}).encode(),
]


@pytest.mark.parametrize("meta", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_meta_json_is_built_again(kept, meta):
    directory, expected = kept
    (directory / META).write_bytes(meta)
    check_rebuilt(expected)


@pytest.mark.parametrize("value", [None, -1, 2**70, 1.5, "x", [], {}, [None], {"input_ids": None}, True])
def test_a_signed_meta_json_of_wrong_values_is_built_again(kept, value):
    """Of an earlier version, or of somebody who knows the format: no value of any field may crash a run."""
    directory, expected = kept
    plain = read_signed((directory / META).read_bytes())
    for field in plain:
        if field not in ("files", "content"):  # free texts: a run names its own files
            (directory / META).write_bytes(sign({**plain, field: value}))
            check_rebuilt(expected)


def test_damaged_notes_beside_the_shards_do_no_harm(kept):
    directory, expected = kept
    beside = [path for path in directory.parent.parent.rglob("*") if path.is_file() and path.parent != directory]
    assert {path.suffix for path in beside} >= {".lock", ".verified"}
    for path in beside:
        for data in (b"", b"\xff" * 500, b"[" * 4000, b'{"files": 1}', b'{"time": []}', b"null"):
            path.write_bytes(data)
            assert contents(prepare("a.jsonl", since=0.0)) == expected


@pytest.fixture
def hashed(monkeypatch):
    """Names of the shards' files that are hashed to verify them."""
    found, file_hash = [], store_module.file_hash

    def counted(path, stop=None):
        found.append(path.name)
        return file_hash(path, stop)

    monkeypatch.setattr(store_module, "file_hash", counted)
    return found


def test_shards_are_verified_once_a_run_and_not_in_its_workers(kept, hashed):
    expected, since = kept[1], time.time()
    store = prepare("a.jsonl", since=since)
    assert len(hashed) == 8
    assert contents(prepare("a.jsonl", since=since)) == expected  # as another process of the same run
    assert contents(pickle.loads(pickle.dumps(store))) == expected  # as in a worker that loads data
    assert len(hashed) == 8
    prepare("a.jsonl", since=time.time())  # the next run
    assert len(hashed) == 16


def test_shards_that_changed_since_they_were_verified_are_verified_again(kept, hashed):
    directory, expected = kept
    since = time.time()
    prepare("a.jsonl", since=since)
    times = (directory / "lengths.bin").stat()
    time.sleep(0.05)  # longer than a tick of the clock that change times are taken from
    zeroed(directory / "lengths.bin")
    os.utime(directory / "lengths.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
    again = prepare("a.jsonl", since=since)
    assert contents(again) == expected
    assert again.report.warnings == {"BC075": 1}


def test_every_process_of_the_run_that_rebuilt_them_counts_them(kept):
    directory, _ = kept
    zeroed(directory / "lengths.bin")
    since = time.time()
    assert [prepare("a.jsonl", since=since).report.warnings for _ in range(2)] == [{"BC075": 1}] * 2
    assert prepare("a.jsonl", since=time.time()).report.warnings == {}


def test_shards_that_are_replaced_while_they_are_opened_are_opened_again(kept, monkeypatch):
    """Another process replaces damaged shards between this one's mapping and verifying: what is mapped is damaged."""
    directory, expected = kept
    zeroed(directory / "input_ids.00000.bin")
    digest, calls = verified._digest, []

    def replaced_meanwhile(store):
        if not calls:
            calls.append(None)
            prepare("a.jsonl", since=0.0)
        return digest(store)

    monkeypatch.setattr(verified.fcntl, "flock", lambda *_: None)  # two openings in one process would wait
    monkeypatch.setattr(verified, "_digest", replaced_meanwhile)
    assert contents(prepare("a.jsonl", since=time.time())) == expected


def test_bc076_a_file_that_changes_while_it_is_read(data, tmp_path):
    class Slow(ByteStage):
        def encode(self, *, samples):
            data([text.upper() for text in TEXTS])
            return super().encode(samples=samples)

    with pytest.raises(DataError, match=r"BC076 .*a\.jsonl") as caught:
        prepare(data(TEXTS), stage=Slow(), cache_dir=str(tmp_path / "cache"))
    assert len(caught.value.problems) == 1
    assert [path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]
    assert tokens(prepare("a.jsonl", cache_dir=str(tmp_path / "cache"))) == [text.upper() for text in TEXTS]


def test_an_edited_data_file_of_the_same_size_and_time_is_noticed(data):
    first = prepare(data(["aaaa"]))
    times = os.stat("a.jsonl")
    second = prepare(data(["bbbb"]))
    os.utime("a.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (tokens(first), tokens(second), tokens(prepare("a.jsonl"))) == (["aaaa"], ["bbbb"], ["bbbb"])
