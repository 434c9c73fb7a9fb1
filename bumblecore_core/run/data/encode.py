"""Samples to token examples, in this process or in a pool of spawned ones, with the same bits either way."""

from __future__ import annotations

import math
import os
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker
from typing import Any, Literal

import numpy as np

from bumblecore_core.errors import BumbleError, PluginError, Problem, RowError, RunError, one
from bumblecore_core.protocols import Stage
from bumblecore_core.registry.validate import typename
from bumblecore_core.run.blame import TRACEBACK, Plugin, breach, passes, place_of
from bumblecore_core.run.data.rows import Chunk
from bumblecore_core.run.data.workers import follow_parent, signals_held
from bumblecore_core.values import Dropped, Sample, TokenExample

SMALL_BYTES = 64 << 20
MOST_PROCESSES = 8
WANTS_RESULTS = "`encode` returns for each sample a TokenExample, several of them, a Dropped or a RowError"
WANTS_EXAMPLE = "A TokenExample has the stage's columns of 32-bit integers, a length of 1 or more and a count"
CUT = Dropped(code="BC028", reason="the row does not fit data.max_length")
TOO_LONG = RowError(
    code="BC028",
    field="",
    problem="the row does not fit data.max_length",
    fix="Raise data.max_length, or set data.too_long to drop or truncate",
)
_EMPTY, _RANGE = np.zeros(0, dtype=np.int32), np.iinfo(np.int32)


@dataclass(frozen=True, kw_only=True)
class LengthPolicy:
    """What becomes of rows of which a stage cuts something off, so that they fit in `max_length` tokens."""

    max_length: int
    too_long: Literal["truncate", "drop", "error"] = "truncate"

    def apply(self, result: Any) -> Any:
        """A stage's result for a row, or what takes its place."""
        if self.too_long == "truncate":
            return result
        parts = result if isinstance(result, Sequence) else [result]
        is_cut = any(isinstance(part, TokenExample) and part.truncated for part in parts)
        if self.too_long == "drop":
            return CUT if is_cut else result
        return TOO_LONG if is_cut or (isinstance(result, Dropped) and result.code == CUT.code) else result


@dataclass(kw_only=True)
class Encoded:
    """The examples of a chunk as arrays. `columns`: name → all examples' values one after another, int32; `sizes`: name
    → (n,) values of each example; `lengths` (int32), `counts` (float64): (n,) of the examples; `rows`: (n,) index of
    the sample that each came from. `truncated`: how many are cut, `cut_ends`: how many at the very limit. `dropped`:
    (row, what); `errors`: (row, problem without its place)."""

    columns: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    lengths: np.ndarray
    counts: np.ndarray
    rows: np.ndarray
    truncated: int
    warnings: Counter[str]
    cut_ends: int = 0
    dropped: list[tuple[int, Dropped]] = field(default_factory=list)
    errors: list[tuple[int, Problem]] = field(default_factory=list)


def encode_samples(stage: Stage, samples: Sequence[Sample], plugin: Plugin, lengths: LengthPolicy) -> Encoded:
    """Encodes a chunk and checks what the stage returned. Raises `PluginError` BC060 where that breaks its contract."""
    try:
        results = stage.encode(samples=samples) if samples else ()
    except (Exception, SystemExit) as error:
        if passes(error):
            raise
        # its text may hold a row's
        problem = f"{plugin} raised {type(error).__name__} while it encoded rows ({place_of(error)})"
        raise one(
            PluginError, "BC060", problem, f"Report this to its author; {TRACEBACK}", field=plugin.field
        ) from error
    if not isinstance(results, Sequence) or len(results) != len(samples):
        number = len(results) if isinstance(results, Sequence) else typename(results)
        raise breach(plugin, f"returned {number} for {len(samples)} samples", WANTS_RESULTS)
    examples: list[TokenExample] = []
    rows: list[int] = []
    dropped: list[tuple[int, Dropped]] = []
    errors: list[tuple[int, Problem]] = []
    for row, result in enumerate(map(lengths.apply, results)):
        if isinstance(result, RowError):
            errors.append((row, result.problem))
        elif isinstance(result, Dropped):
            dropped.append((row, result))
        else:
            parts = [result] if isinstance(result, TokenExample) else result
            if not isinstance(parts, Sequence):
                raise breach(plugin, f"returned {typename(parts)} for a sample", WANTS_RESULTS)
            examples.extend(parts)
            rows.extend([row] * len(parts))
    columns: dict[str, list[np.ndarray]] = {column: [] for column in stage.columns}
    for example in examples:
        if fault := _example_fault(example, columns):
            raise breach(plugin, f"returned {fault}", WANTS_EXAMPLE)
        for column, arrays in columns.items():
            arrays.append(_int32(plugin, column, example.columns[column]))
    return Encoded(
        columns={column: np.concatenate([_EMPTY, *arrays]) for column, arrays in columns.items()},
        sizes={column: _numbers(map(len, arrays)) for column, arrays in columns.items()},
        lengths=_numbers(example.length for example in examples),
        counts=np.fromiter((example.count for example in examples), dtype=np.float64),
        rows=_numbers(rows),
        truncated=sum(example.truncated for example in examples),
        cut_ends=sum(example.truncated and example.length >= lengths.max_length for example in examples),
        warnings=Counter(warning for example in examples for warning in example.warnings),
        dropped=dropped,
        errors=errors,
    )


def _example_fault(example: Any, columns: Collection[str]) -> str | None:
    """What is wrong with an example, its columns' values aside."""
    if not isinstance(example, TokenExample):
        return f"{typename(example)} among its examples"
    if set(example.columns) != set(columns):
        return f"an example that lacks the columns {', '.join(columns)}, or has others"
    if not isinstance(example.length, int | np.integer) or example.length < 1:
        return f"an example with the length {example.length!r}"
    if not isinstance(example.count, int | float | np.integer | np.floating) or not 0 <= example.count < math.inf:
        return f"an example with the count {example.count!r}"
    if not isinstance(example.warnings, tuple | list):
        return f"an example with {typename(example.warnings)} as warnings"
    return None


def _int32(plugin: Plugin, column: str, values: Any) -> np.ndarray:
    """A column's values as the token store holds them. Raises `PluginError` BC060 where they would change."""
    array = np.asarray(values)
    if not array.size and array.ndim == 1:
        return _EMPTY
    whole = array.ndim == 1 and array.dtype.kind in "iu"
    if not whole or (array.dtype.itemsize > _EMPTY.itemsize and not _fit(array)):
        shown = f"{array.dtype} of shape {array.shape}"
        raise breach(plugin, f"returned {shown} as the column '{column}'", WANTS_EXAMPLE)
    return array.astype(np.int32, copy=False)


def _fit(array: np.ndarray) -> bool:
    return bool(_RANGE.min <= array.min() and array.max() <= _RANGE.max)


def encode_chunks(
    chunks: Iterable[Chunk],
    *,
    stage: Stage,
    plugin: Plugin,
    num_proc: int,
    lengths: LengthPolicy,
    make_stage: Callable[[], Stage] | None = None,
) -> Generator[tuple[Chunk, Encoded], None, None]:
    """Each chunk with its examples, in the chunks' order. `num_proc` 0 or 1: in this process.

    Workers get `make_stage` (picklable, called once in each), or `stage` itself pickled. They are killed where the
    caller stops early. Raises `RunError` BC078 where a worker dies.
    """
    if num_proc <= 1:
        for chunk in chunks:
            yield chunk, encode_samples(stage, chunk.samples, plugin, lengths)
        return
    factory = pickle.dumps(make_stage if make_stage is not None else _Ready(stage))
    pool = ProcessPoolExecutor(
        num_proc, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(factory, plugin, lengths)
    )
    workers = pool._processes
    # Python 3.10 waits for ever for a killed worker to read the queue
    pool._call_queue.cancel_join_thread()  # type: ignore[attr-defined]
    resource_tracker.ensure_running()  # before signals are held: starting it lets them go
    waiting: deque[tuple[Chunk, Future[Encoded]]] = deque()
    try:
        for chunk in chunks:
            samples, chunk.samples = chunk.samples, []  # the pool holds them until they are sent
            with signals_held():  # the pool starts its processes when the first chunks are submitted
                waiting.append((chunk, pool.submit(_encode_in_worker, samples)))
            if len(waiting) > 3 * num_proc:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    except BaseException as error:
        for worker in list(workers.values()):
            worker.kill()
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise _died([worker.exitcode for worker in workers.values()]) from error
        raise
    pool.shutdown(wait=True)


def processes(num_proc: int | None, *, total_bytes: int, stage: Stage, make_stage: Callable[[], Stage] | None) -> int:
    """How many worker processes to use: by the size of the input where `num_proc` is None, none where the stage can
    neither be pickled nor be made by a picklable factory."""
    cores = os.cpu_count() or 1
    if num_proc is not None:
        wanted = min(num_proc, max(MOST_PROCESSES, cores))  # more than there are cores would only take memory
    else:
        wanted = 0 if total_bytes < SMALL_BYTES else min(MOST_PROCESSES, cores)
    if wanted > 1:
        try:
            pickle.dumps(make_stage if make_stage is not None else stage)
        except Exception:  # pickling runs the stage's own code, which may raise anything
            return 0
    return wanted if wanted > 1 else 0


class _Ready:
    """A factory of a stage that travels as it is."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __call__(self) -> Stage:
        return self.stage


_worker: tuple[Stage, Plugin, LengthPolicy] | None = None


def _start_worker(factory: bytes, plugin: Plugin, lengths: LengthPolicy) -> None:
    global _worker
    follow_parent()
    # One core for each process: the tokenizer's own threads would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = (pickle.loads(factory)(), plugin, lengths)


def _encode_in_worker(samples: Sequence[Sample]) -> Encoded:
    assert _worker is not None
    stage, plugin, lengths = _worker
    return encode_samples(stage, samples, plugin, lengths)


def _next(waiting: deque[tuple[Chunk, Future[Encoded]]]) -> tuple[Chunk, Encoded]:
    chunk, future = waiting.popleft()
    return chunk, future.result()


def _died(codes: Sequence[int | None]) -> BumbleError:
    """The error of a worker that ended; the codes of those that were stopped because of it are 0 or of SIGKILL too."""
    code = next((code for code in codes if code not in (None, 0, -signal.SIGKILL)), -signal.SIGKILL)
    fix = "Set data.num_proc to fewer processes, or to 0"
    if code == -signal.SIGKILL:
        problem = "a worker process that tokenizes was killed by SIGKILL, probably by the out-of-memory killer"
        return one(RunError, "BC078", problem, f"Check dmesg. {fix}", field="data.num_proc")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    problem = f"a worker process that tokenizes {how}"
    if code > 0:
        fix += ". A script of your own needs an `if __name__ == '__main__'` guard"
    return one(RunError, "BC078", problem, fix, field="data.num_proc")


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int32)
