"""Memory-mapped token shards: written once, read by any number of processes, never trusted when torn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bumblecore_core.run.data.encode import Encoded
from bumblecore_core.run.data.report import PrepareReport

VERSION = 2
META = "meta.json"
SHARD_BYTES = 1 << 30
ARRAYS = {"lengths": np.int32, "counts": np.int32, "sources": np.int32, "lines": np.int64}


class TornStore(Exception):
    """The directory is not a complete store."""


class TokenStore:
    """The examples of a data set.

    `lengths`, `counts`, `sources`: (n,) int32, tokens of each example, what its loss counts, and the index of its data
    file in `files`; `weights`: of each file; `fingerprint`: of what the shards were made from; `content`: SHA-256 of
    the examples themselves, however and wherever they were made; `report`: how that went.
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

        Raises `TornStore` where a file is missing, of another size, or `meta.json` cannot be read.
        """
        self.directory = directory
        self._attached: dict[str, np.ndarray] = {}
        meta = _read_meta(directory)
        self.fingerprint: str = meta["fingerprint"]
        self.content: str = meta["content"]
        self.report = PrepareReport.from_json(meta["report"], reused=reused)
        self.files: tuple[str, ...] = tuple(files if files is not None else meta["files"])
        self.weights: tuple[float, ...] = tuple(weights if weights is not None else [1.0] * len(self.files))
        self.columns: tuple[str, ...] = tuple(meta["columns"])
        count = int(meta["examples"])
        self.lengths, self.counts, self.sources, self._lines = (
            _mapped(directory / f"{name}.bin", dtype, count) for name, dtype in ARRAYS.items()
        )
        self._offsets = {name: _mapped(directory / f"{name}.offsets.bin", np.int64, count + 1) for name in self.columns}
        self._shards = {
            name: [
                _mapped(directory / _shard_name(name, index), np.int32, int(shard["values"]))
                for index, shard in enumerate(meta["shards"][name])
            ]
            for name in self.columns
        }
        # Where each shard begins, in values of the whole column; an example never spans two shards.
        self._starts = {
            name: np.cumsum([0, *(int(shard["values"]) for shard in meta["shards"][name])]) for name in self.columns
        }

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

    def locate(self, index: int) -> str:
        """`file:line` of the row that the example came from."""
        return f"{self.files[int(self.sources[index])]}:{int(self._lines[index])}"


class StoreWriter:
    """Writes a store's files into an empty directory; `finish` writes `meta.json`, which makes it a store."""

    def __init__(self, directory: Path, columns: Sequence[str], *, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory, self.columns = directory, tuple(columns)
        self.examples = self.tokens = self.supervised = 0
        self._shard_values = max(1, shard_bytes // 4)
        self._shards: dict[str, list[int]] = {name: [] for name in self.columns}  # values of each shard
        self._open: dict[str, Any] = {}
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
        self._append("counts.bin", encoded.counts)
        self._append("sources.bin", np.full(count, source, dtype=np.int32))
        self._append("lines.bin", lines[encoded.rows].astype(np.int64))
        for name in self.columns:
            ends = np.cumsum(encoded.sizes[name], dtype=np.int64)
            self._append(f"{name}.offsets.bin", ends + self._offset[name])
            self._offset[name] += int(ends[-1]) if count else 0
            self._add_values(name, encoded.columns[name], ends)
        self.examples += count
        self.tokens += int(encoded.lengths.sum(dtype=np.int64))
        self.supervised += int(encoded.counts.sum(dtype=np.int64))

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
            "shards": {name: [{"values": values} for values in self._shards[name]] for name in self.columns},
            "files": list(files),
            "report": report.to_json(),
        }
        with (self.directory / META).open("w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    def _content(self) -> str:
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
        self._open[name].write(np.ascontiguousarray(values).data)


def _reopen(
    directory: Path, files: Sequence[str], weights: Sequence[float], reused: bool, attached: Mapping[str, np.ndarray]
) -> TokenStore:
    store = TokenStore(directory, files=files, weights=weights, reused=reused)
    store.attach(attached)
    return store


def _shard_name(column: str, index: int) -> str:
    return f"{column}.{index:05d}.bin"


def _read_meta(directory: Path) -> Mapping[str, Any]:
    try:
        meta = json.loads((directory / META).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TornStore(f"{directory}: {META} is missing or unreadable") from error
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        raise TornStore(f"{directory}: not a store of version {VERSION}")
    return meta


def _mapped(path: Path, dtype: Any, count: int) -> np.ndarray:
    """(count,) values of the file, mapped read-only, as a plain array (a memmap's own slices are slow)."""
    expected = count * np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
    except OSError as error:
        raise TornStore(f"{path} is missing") from error
    if size != expected:
        raise TornStore(f"{path} has {size} bytes instead of {expected}")
    if count == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,)).view(np.ndarray)
