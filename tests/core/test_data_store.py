"""Token shards: what is written is read back, over shard bounds, in other processes, and never when torn."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.run.data.encode import Encoded
from bumblecore_core.run.data.report import DroppedRows, PrepareReport
from bumblecore_core.run.data.store import META, StoreWriter, TokenStore, TornStore

COLUMNS = ("input_ids", "labels")
REPORT = PrepareReport(
    rows=9,
    examples=3,
    tokens=4,
    supervised=2,
    dropped=(DroppedRows(code="BC015", reason="empty", count=5, places=("a:1", "a:2", "a:3")),),
    warnings={"BC009": 4},
    formats=("text",),
    seconds=1.5,
)


def encoded(examples: list[dict[str, list[int]]]) -> Encoded:
    return Encoded(
        columns={c: np.asarray([v for example in examples for v in example[c]], dtype=np.int32) for c in COLUMNS},
        sizes={c: np.asarray([len(example[c]) for example in examples], dtype=np.int32) for c in COLUMNS},
        lengths=np.asarray([len(example["input_ids"]) for example in examples], dtype=np.int32),
        counts=np.asarray([len(example["labels"]) for example in examples], dtype=np.int32),
        rows=np.arange(len(examples), dtype=np.int32),
        truncated=0,
        warnings=Counter(),
    )


def write(directory, chunks, shard_bytes=1 << 30) -> None:
    writer = StoreWriter(directory, COLUMNS, shard_bytes=shard_bytes)
    for source, chunk in enumerate(chunks):
        writer.add(encoded(chunk), source=source, lines=np.arange(len(chunk)) + 10)
    writer.finish(fingerprint="f", files=[f"{source}.jsonl" for source in range(len(chunks))], report=REPORT)


def check(store: TokenStore, chunks) -> None:
    examples = [example for chunk in chunks for example in chunk]
    assert len(store) == len(examples)
    for index, example in enumerate(examples):
        read = store.example(index)
        assert {name: values.tolist() for name, values in read.items()} == example
        assert all(values.dtype == np.int32 for values in read.values())
    assert store.lengths.tolist() == [len(example["input_ids"]) for example in examples]
    assert store.counts.tolist() == [len(example["labels"]) for example in examples]
    assert [store.locate(index) for index in range(len(store))] == [
        f"{source}.jsonl:{line + 10}" for source, chunk in enumerate(chunks) for line in range(len(chunk))
    ]


VALUES = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)
CHUNKS = st.lists(st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, VALUES)), max_size=6), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(chunks=CHUNKS, shard_values=st.integers(1, 12))
def test_any_examples_come_back_over_any_shard_size(tmp_path_factory, chunks, shard_values):
    directory = tmp_path_factory.mktemp("store")
    write(directory, chunks, shard_bytes=4 * shard_values)
    check(TokenStore(directory), chunks)
    for column in COLUMNS:
        sizes = [path.stat().st_size // 4 for path in sorted(directory.glob(f"{column}.0*.bin"))]
        longest = max((len(example[column]) for chunk in chunks for example in chunk), default=0)
        assert all(size <= max(shard_values, longest) for size in sizes)


THREE = [[{"input_ids": [1, 2], "labels": [1]}, {"input_ids": [], "labels": []}], [{"input_ids": [3], "labels": [4]}]]


def test_examples_are_read_only_views_of_the_mapped_file(tmp_path):
    write(tmp_path, THREE)
    first = TokenStore(tmp_path).example(0)["input_ids"]
    assert not first.flags.writeable
    assert not first.flags.owndata
    assert type(first) is np.ndarray


def test_the_longest_sequence_is_a_column_within_the_examples_length(tmp_path):
    chunks = [
        [{"input_ids": [1, 2], "labels": [1]}, {"input_ids": [1, 2, 3], "labels": [1, 2, 3, 4, 5, 6, 7, 8]}],
        [{"input_ids": [], "labels": []}],
    ]
    write(tmp_path, chunks)
    store = TokenStore(tmp_path)
    assert store.longest_sequence() == 3  # what is longer than the example takes no positions
    store.lengths = np.asarray([9, 5, 0], dtype=np.int32)  # as of two sequences in an example
    assert store.longest_sequence() == 5
    store.lengths = np.asarray([9, 1, 0], dtype=np.int32)
    assert store.longest_sequence() == 2


def content(directory, chunk=THREE[0], *, lengths=(4, 4), counts=(2, 2), source=0, line=10, shard_bytes=1 << 30):
    """The content of a store of one chunk, whose lengths and counts are not those of its columns."""
    directory.mkdir()
    writer = StoreWriter(directory, COLUMNS, shard_bytes=shard_bytes)
    arrays = {name: np.asarray(values, dtype=np.int32) for name, values in (("lengths", lengths), ("counts", counts))}
    writer.add(replace(encoded(chunk), **arrays), source=source, lines=np.arange(len(chunk)) + line)
    writer.finish(fingerprint="f", files=["0.jsonl"] * (source + 1), report=REPORT)
    return TokenStore(directory).content


def test_the_content_is_that_of_the_examples_and_not_of_their_places(tmp_path):
    def variant(**changes):
        return content(tmp_path / str(len(list(tmp_path.iterdir()))), **changes)

    chunk = [{"input_ids": [1, 2], "labels": [7]}, {"input_ids": [3], "labels": [8, 9]}]
    others = [
        variant(chunk=chunk),
        variant(chunk=chunk, lengths=(4, 5)),
        variant(chunk=chunk, counts=(1, 2)),
        variant(chunk=chunk, source=1),
        variant(chunk=[{"input_ids": [1, 2], "labels": [7]}, {"input_ids": [3], "labels": [8, 10]}]),
        variant(chunk=[{"input_ids": [1], "labels": [7]}, {"input_ids": [2, 3], "labels": [8, 9]}]),
        variant(chunk=[{"input_ids": [1, 2], "labels": [7, 8]}, {"input_ids": [3], "labels": [9]}]),
        variant(chunk=chunk[::-1]),
    ]
    assert len(set(others)) == len(others)
    assert variant(chunk=chunk, line=99) == variant(chunk=chunk, shard_bytes=4) == others[0]


def test_an_index_beyond_the_end_is_refused(tmp_path):
    write(tmp_path, THREE)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            TokenStore(tmp_path).example(index)


def test_a_pickled_store_is_small_and_opens_again(tmp_path):
    examples = [{"input_ids": list(range(10_000)), "labels": [1]}]
    write(tmp_path, [examples])
    store = TokenStore(tmp_path, files=["moved.jsonl"], weights=[2.0], reused=True)
    packed = pickle.dumps(store)
    again = pickle.loads(packed)
    assert len(packed) < 2000
    assert again.example(0)["input_ids"].tolist() == examples[0]["input_ids"]
    assert (again.files, again.weights, again.report) == (("moved.jsonl",), (2.0,), store.report)


def test_the_report_is_stored(tmp_path):
    write(tmp_path, THREE)
    assert TokenStore(tmp_path).report == REPORT
    reused = TokenStore(tmp_path, reused=True).report
    assert reused.reused
    assert reused.dropped_lines() == [("BC015 empty (a:1, a:2, a:3, …)", 5)]
    assert reused.warning_lines() == ["BC009 blank lines were skipped: 4"]


def test_a_torn_store_is_refused(tmp_path):
    write(tmp_path, THREE)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(TornStore):
            TokenStore(tmp_path)
        if whole:
            path.write_bytes(whole[:-1])
            with pytest.raises(TornStore):
                TokenStore(tmp_path)
        path.write_bytes(whole)
    check(TokenStore(tmp_path), THREE)


def test_meta_is_written_last(tmp_path):
    writer = StoreWriter(tmp_path, COLUMNS)
    writer.add(encoded(THREE[0]), source=0, lines=np.arange(2))
    writer.close()
    assert not (tmp_path / META).exists()
