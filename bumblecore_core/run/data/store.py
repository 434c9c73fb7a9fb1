"""Memory-mapped token shards: written once, read by any number of processes, never trusted when damaged."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from bumblecore_core.run.data.encode import Encoded
from bumblecore_core.run.data.report import PrepareReport
from bumblecore_core.run.data.text_lines import place
from bumblecore_core.run.files import write_synced
from bumblecore_core.run.hashing import file_hash, identity, in_threads
from bumblecore_core.run.signed_json import read_signed, sign
from bumblecore_core.toolkit.token_weights import as_count

VERSION = 4
META = "meta.json"
SHARD_BYTES = 1 << 30
# float64 holds every whole count, and the sum of any example's float32 weights as the loss adds it up.
ARRAYS = {"lengths": np.int32, "counts": np.float64, "sources": np.int32, "lines": np.int64}


class TornStore(Exception):
    """The directory is not a complete store; the message names the file."""


class NoStore(TornStore):
    """There is nothing at the directory's place."""


class TokenStore:
    """The examples of a data set.

    `lengths`, `sources`: (n,) int32, tokens of each example, and the index of its data file in `files`; `counts`: (n,)
    float64, what its loss counts; `weights`: of each file; `fingerprint`: of what the shards were made from; `content`:
    SHA-256 of the examples themselves, however and wherever they were made; `report`: how that went; `identities`: of
    the files that are mapped, what stays the same while they are not changed.
    Pickles as its directory: a worker maps the files anew.
    """

    def __init__(
        self,
        directory: Path,
        *,
        files: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        reused: bool = False,
    ) -> None:
        """Opens `directory`. `files` (same contents, in the same order) and `weights` replace those of the build.
        Raises `TornStore` where a file is missing, of another size, or `meta.json` is not what was written. The other
        files' bytes are compared by `damaged` alone: once for each run, not again in its worker processes.
        """
        self.directory = directory
        self._attached: dict[str, np.ndarray] = {}
        meta = _read_meta(directory)
        try:
            self.fingerprint: str = meta["fingerprint"]
            self.content: str = meta["content"]
            self.report = PrepareReport.from_json(meta["report"], reused=reused)
            self.files: tuple[str, ...] = tuple(files if files is not None else meta["files"])
            self.weights: tuple[float, ...] = tuple(weights if weights is not None else [1.0] * len(self.files))
            self.columns: tuple[str, ...] = tuple(meta["columns"])
            self._hashes: dict[str, str] = dict(meta["hashes"])
            self._map(int(meta["examples"]), {name: [int(n) for n in meta["shards"][name]] for name in self.columns})
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise TornStore(f"{META} does not describe token shards") from error

    def _map(self, count: int, shards: Mapping[str, Sequence[int]]) -> None:
        """Maps all files. `shards`: values of each shard, by column."""
        self.identities: dict[str, tuple[int, ...]] = {}
        self.lengths, self.counts, self.sources, self._lines = (
            self._mapped(f"{name}.bin", dtype, count) for name, dtype in ARRAYS.items()
        )
        self._offsets = {name: self._mapped(f"{name}.offsets.bin", np.int64, count + 1) for name in self.columns}
        self._shards = {
            name: [
                self._mapped(_shard_name(name, index), np.int32, values) for index, values in enumerate(shards[name])
            ]
            for name in self.columns
        }
        if self.identities.keys() != self._hashes.keys():
            raise TornStore(f"{META} does not have the hash of each file")
        # Where each shard begins, in values of the whole column; an example never spans two shards.
        self._starts = {name: np.cumsum([0, *shards[name]]) for name in self.columns}

    def _mapped(self, name: str, dtype: Any, count: int) -> np.ndarray:
        """(count,) values of a file, mapped read-only, as a plain array (a memmap's own slices are slow)."""
        expected = count * np.dtype(dtype).itemsize
        try:
            with open(self.directory / name, "rb", opener=_without_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size != expected:
                    raise TornStore(f"{name} has {status.st_size} bytes instead of {expected}")
                self.identities[name] = identity(status)
                if count == 0:
                    return np.zeros(0, dtype=dtype)
                return np.memmap(file, dtype=dtype, mode="r", shape=(count,)).view(np.ndarray)
        except OSError as error:
            raise TornStore(f"{name} is missing or unreadable") from error

    def damaged(self) -> list[str]:
        """The files whose bytes are not those that were written, or that were replaced. Reads all, in threads."""

        def is_damaged(name: str, stop: Event) -> bool:
            file = self.directory / name
            try:
                return file_hash(file, stop) != self._hashes[name] or identity(file.stat()) != self.identities[name]
            except OSError:
                return True

        names = sorted(self.identities)
        return [name for name, damaged in zip(names, in_threads(is_damaged, names), strict=True) if damaged]

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.directory, self.files, self.weights, self.report.reused, self._attached)

    def attach(self, values: Mapping[str, np.ndarray]) -> None:
        """Has every example carry these figures too: (n,) arrays, of which example i gets [i : i + 1]."""
        self._attached = dict(values)

    def example(self, index: int) -> dict[str, np.ndarray]:
        """Column name → (values,) int32, read-only views of the mapped files. Raises `IndexError` beyond the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        found: dict[str, np.ndarray] = {}
        for name in self.columns:
            first, last = int(self._offsets[name][index]), int(self._offsets[name][index + 1])
            starts = self._starts[name]
            shard = min(int(np.searchsorted(starts, first, side="right")) - 1, len(self._shards[name]) - 1)
            base = int(starts[shard])
            found[name] = self._shards[name][shard][first - base : last - base]
        for name, column in self._attached.items():
            found[name] = column[index : index + 1]
        return found

    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that an example has: its longest column, but not more than its length. An
        example of a preference pair has two sequences, and their lengths add up to more than either takes positions."""
        columns = [np.diff(offsets) for offsets in self._offsets.values()]
        return int(np.minimum(self.lengths, np.maximum.reduce(columns)).max())

    def has_values(self, column: str) -> bool:
        """Whether any example has values in this column."""
        return column in self._offsets and bool(self._offsets[column][-1])

    def rows(self) -> np.ndarray:
        """(n,) int64, for each example the row that it came from, counted from 0 over those that gave an example."""
        differs = (np.diff(self.sources) != 0) | (np.diff(self._lines) != 0)
        return np.cumsum(np.concatenate([np.zeros(min(1, len(self)), dtype=np.int64), differs]))

    def locate(self, index: int) -> str:
        """The place of the example's row: `file:line` or `file row N`."""
        return place(self.files[int(self.sources[index])], int(self._lines[index]))


class StoreWriter:
    """Writes a store's files into an empty directory; `finish` writes `meta.json`, which makes it a store."""

    def __init__(self, directory: Path, columns: Sequence[str], *, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory, self.columns = directory, tuple(columns)
        self.examples = self.tokens = 0
        self.supervised: int | float = 0
        self._shard_values = max(1, shard_bytes // 4)
        self._shards: dict[str, list[int]] = {name: [] for name in self.columns}  # values of each shard
        self._open: dict[str, Any] = {}
        self._digests: dict[str, Any] = {}  # of what was to be written, not of what a faulty disk made of it
        self._offset = dict.fromkeys(self.columns, 0)
        for name in self.columns:
            self._new_shard(name)
            self._append(f"{name}.offsets.bin", np.zeros(1, dtype=np.int64))
        for name in ARRAYS:
            self._append(f"{name}.bin", np.zeros(0, dtype=np.int32))

    def add(self, encoded: Encoded, *, source: int, lines: np.ndarray) -> None:
        """Appends the examples of a chunk of file `source`; `lines[i]`: line of the chunk's sample i."""
        count = len(encoded.lengths)
        self._append("lengths.bin", encoded.lengths)
        self._append("counts.bin", encoded.counts.astype(np.float64, copy=False))
        self._append("sources.bin", np.full(count, source, dtype=np.int32))
        self._append("lines.bin", lines[encoded.rows].astype(np.int64))
        for name in self.columns:
            ends = np.cumsum(encoded.sizes[name], dtype=np.int64)
            self._append(f"{name}.offsets.bin", ends + self._offset[name])
            self._offset[name] += int(ends[-1]) if count else 0
            self._add_values(name, encoded.columns[name], ends)
        self.examples += count
        self.tokens += int(encoded.lengths.sum(dtype=np.int64))
        self.supervised = as_count(self.supervised + float(encoded.counts.sum(dtype=np.float64)))

    def finish(self, *, fingerprint: str, files: Sequence[str], report: PrepareReport) -> None:
        """Syncs every file to disk, then writes `meta.json`."""
        for name in list(self._open):
            self._sync_and_close(name)
        meta = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "content": self._content(),
            "examples": self.examples,
            "columns": list(self.columns),
            "shards": self._shards,
            "files": list(files),
            "hashes": {name: digest.hexdigest() for name, digest in self._digests.items()},
            "report": report.to_json(),
        }
        write_synced(self.directory / META, sign(meta))

    def _content(self) -> str:
        """One hash over all columns, that sees nothing of how they are cut into shards."""
        digest = hashlib.sha256(",".join(self.columns).encode())
        shards = [_shard_name(name, index) for name in self.columns for index in range(len(self._shards[name]))]
        offsets = [f"{name}.offsets.bin" for name in self.columns]
        for file in ["lengths.bin", "counts.bin", "sources.bin", *offsets, *shards]:
            with (self.directory / file).open("rb") as opened:
                while block := opened.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()

    def close(self) -> None:
        """Closes all files; safe to call twice."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _add_values(self, name: str, values: np.ndarray, ends: np.ndarray) -> None:
        """Appends whole examples to the open shard while they fit, and goes on in a new one."""
        start, first = 0, 0
        while first < len(ends):
            room = self._shard_values - self._shards[name][-1]
            fitting = int(np.searchsorted(ends, start + room, side="right"))
            if fitting <= first:
                if self._shards[name][-1] > 0:
                    self._new_shard(name)
                    continue
                fitting = first + 1  # longer than a shard: it gets one of its own
            stop = int(ends[fitting - 1])
            self._append(_shard_name(name, len(self._shards[name]) - 1), values[start:stop])
            self._shards[name][-1] += stop - start
            start, first = stop, fitting

    def _sync_and_close(self, name: str) -> None:
        with self._open.pop(name) as file:
            file.flush()
            os.fsync(file.fileno())

    def _new_shard(self, name: str) -> None:
        if self._shards[name]:
            self._sync_and_close(_shard_name(name, len(self._shards[name]) - 1))
        self._shards[name].append(0)
        self._append(_shard_name(name, len(self._shards[name]) - 1), np.zeros(0, dtype=np.int32))

    def _append(self, name: str, values: np.ndarray) -> None:
        if name not in self._open:
            self._open[name] = (self.directory / name).open("wb")
            self._digests[name] = hashlib.sha256()
        data = np.ascontiguousarray(values).data
        self._open[name].write(data)
        self._digests[name].update(data)


def _reopen(
    directory: Path, files: Sequence[str], weights: Sequence[float], reused: bool, attached: Mapping[str, np.ndarray]
) -> TokenStore:
    store = TokenStore(directory, files=files, weights=weights, reused=reused)
    store.attach(attached)
    return store


def _shard_name(column: str, index: int) -> str:
    return f"{column}.{index:05d}.bin"


def _read_meta(directory: Path) -> Mapping[str, Any]:
    if not os.path.lexists(directory):
        raise NoStore("there is no store yet")
    try:
        with open(directory / META, "rb", opener=_without_waiting) as file:
            meta = read_signed(file.read())
    except OSError as error:
        raise TornStore(f"{META} is missing or unreadable") from error
    except (ValueError, RecursionError) as error:
        raise TornStore(f"{META} is damaged") from error
    if meta.get("version") != VERSION:
        raise TornStore(f"{META} is of another version")
    return meta


def _without_waiting(path: str, flags: int) -> int:
    """Opening a FIFO would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)
