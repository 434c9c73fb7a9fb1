"""Preparing data: files to rows, rows to samples, samples to token shards; or the shards of an earlier run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bumblecore_core.config.resolved import Selected
from bumblecore_core.config.schema import DataFile, DataSection
from bumblecore_core.errors import DataError, Problem, RunError, one
from bumblecore_core.protocols import Stage
from bumblecore_core.records import DataFormatRecord, Options, StageRecord
from bumblecore_core.registry import Registry
from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.console import say
from bumblecore_core.run.data.bad_rows import SKIPPED_LOG, BadRows, RowProblem, refuse_bad_share
from bumblecore_core.run.data.cache import build_lock, fresh_directory, remove_leftovers
from bumblecore_core.run.data.encode import Encoded, LengthPolicy, encode_chunks, processes
from bumblecore_core.run.data.files import Source, resolve_files
from bumblecore_core.run.data.fingerprint import cache_dir_of, code_fingerprint, content_hashes, data_fingerprint
from bumblecore_core.run.data.report import PrepareReport, Tally
from bumblecore_core.run.data.rows import Chunk, read_chunks
from bumblecore_core.run.data.store import StoreWriter, TokenStore, TornStore
from bumblecore_core.run.data.text_lines import place
from bumblecore_core.run.data.verified import count_rebuilt, noting_built, open_verified

MOST_UNFITTING = 0.05


def prepare_store(
    *,
    files: Sequence[DataFile],
    formats: Sequence[Selected[DataFormatRecord] | None],
    registry: Registry,
    stage: Stage,
    stage_record: StageRecord,
    stage_options: Options,
    make_stage: Callable[[], Stage] | None,
    tokenizer_fingerprint: str,
    rendering: Mapping[str, Any] | None = None,
    data: DataSection,
    progress: bool,
    field: str = "data.path",
    since: float | None = None,
) -> TokenStore:
    """The token shards of `files`, built now or reused (`store.report.reused`) where the fingerprint is known and every
    byte is what was written. Damaged shards are built again, which the report counts (BC075). Shards that a process of
    this host verified after `since` (Unix seconds) are not verified again.

    `rendering`: what the tokens of chats depend on beside the tokenizer. `formats`: of each file, None to tell it
    from its first row; more than there are files are ignored. `make_stage`: picklable, makes the stage in a worker
    process; None pickles `stage`. Safe to call in several processes at once: one builds, the others wait and reuse.

    Raises `DataError` with up to 300 different problems of the files and rows (20 of them are shown), BC097 if more
    rows are skipped than `data.max_bad_share` allows, BC028 if more than 5 % of the rows do not fit, BC008 if no row is
    left, BC076 if a file changes while it is read; nothing is kept then.
    """
    sources = resolve_files(files, formats[: len(files)], field=field)
    records: list[DataFormatRecord] = [provided.record for provided in registry.all("data_formats")]  # type: ignore[misc]
    cache = cache_dir_of(data)
    auto = any(source.format is None for source in sources)
    builders = [record.build for record in records] if auto else []
    builders += [source.format.record.build for source in sources if source.format is not None]
    hashes = content_hashes(sources, cache)
    fingerprint = data_fingerprint(
        sources,
        hashes,
        parts={
            "stage": stage_record.name,
            "reads": stage_record.reads,
            "stage_options": stage_options.model_dump(mode="json"),
            "tokenizer": tokenizer_fingerprint,
            "rendering": rendering,
            "max_length": data.max_length,
            "strict": data.strict,
            "txt_split": data.txt_split,
            "on_bad_row": data.on_bad_row,
            "too_long": data.too_long,
        },
        detectable=[record.name for record in records],
        code=code_fingerprint([stage_record.build, stage, *builders]),
    )
    directory = cache / "tokens" / fingerprint[:32]
    names, weights = [str(source.path) for source in sources], [source.weight for source in sources]
    store, damaged = open_verified(directory, fingerprint, files=names, weights=weights, since=since)
    if store is not None:
        refuse_bad_share(store.report, data.max_bad_share)
        return store
    since = time.time() if since is None else since
    with build_lock(directory):
        store, damaged = open_verified(directory, fingerprint, files=names, weights=weights, since=since)
        if store is not None:
            refuse_bad_share(store.report, data.max_bad_share)
            return store
        remove_leftovers(directory)
        try:
            moving = noting_built(directory, damaged)
            with _interrupt_told(), fresh_directory(directory, moving) as temporary:
                _build(
                    temporary,
                    fingerprint=fingerprint,
                    sources=sources,
                    chunks=read_chunks(
                        sources,
                        records=records,
                        reads=stage_record.reads,
                        stage=stage_record.name,
                        txt_split=data.txt_split,
                        max_row_bytes=data.max_row_bytes,
                        failed=registry.failures,
                    ),
                    stage=stage,
                    plugin=Plugin.of(stage_record),
                    make_stage=make_stage,
                    data=data,
                    progress=progress,
                    field=field,
                )
                _refuse_changed(sources, hashes, cache)
            store = TokenStore(directory, files=names, weights=weights)
        except TornStore as torn:
            problem = f"the token shards are not what was written a moment ago ({torn})"
            fix = "Check the disk, or set data.cache_dir to another one"
            raise one(RunError, "BC042", problem, fix, place=str(directory)) from torn
        count_rebuilt(store, damaged)
    return store


@contextmanager
def _interrupt_told() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted while tokenizing: no token shards were kept, the same command tokenizes again")
        raise


def _build(
    directory: Path,
    *,
    fingerprint: str,
    sources: Sequence[Source],
    chunks: Iterator[Chunk],
    stage: Stage,
    plugin: Plugin,
    make_stage: Callable[[], Stage] | None,
    data: DataSection,
    progress: bool,
    field: str,
) -> None:
    began = time.perf_counter()
    total = sum(source.path.stat().st_size for source in sources)
    workers = processes(data.num_proc, total_bytes=total, stage=stage, make_stage=make_stage)
    writer = StoreWriter(directory, stage.columns)
    tally, bad_rows = Tally(), BadRows(skip=data.on_bad_row == "skip", log=directory / SKIPPED_LOG)
    formats = [""] * len(sources)
    lengths = LengthPolicy(max_length=data.max_length, too_long=data.too_long)
    encoded_chunks = encode_chunks(
        chunks, stage=stage, plugin=plugin, num_proc=workers, lengths=lengths, make_stage=make_stage
    )
    with closing(writer), closing(bad_rows), closing(encoded_chunks), _bar(total, progress) as bar:
        for chunk, encoded in encoded_chunks:
            bar.update(chunk.read - bar.n)
            formats[chunk.source] = chunk.format
            problems = _count(chunk, encoded, sources[chunk.source].path, tally, data)
            bad_rows.add(chunk.source, problems, chunk.rows)
            if not bad_rows.failed:
                writer.add(encoded, source=chunk.source, lines=np.asarray(chunk.lines, dtype=np.int64))
            elif bad_rows.enough():
                break
        bad_rows.raise_errors()
        report = tally.report(
            examples=writer.examples,
            tokens=writer.tokens,
            supervised=writer.supervised,
            formats=formats,
            skipped=bad_rows.skipped,
            seconds=time.perf_counter() - began,
        )
        bad_rows.refuse_share(report, data.max_bad_share)
        _refuse_too_little(report, field, drop_too_long=data.too_long == "drop")
        writer.finish(fingerprint=fingerprint, files=[str(source.path) for source in sources], report=report)


def _count(chunk: Chunk, encoded: Encoded, path: Path, tally: Tally, data: DataSection) -> list[RowProblem]:
    """Adds a chunk's counts to `tally`. Returns what is wrong in it, in the order of its rows."""
    bad = list(chunk.problems)
    for row, problem in encoded.errors:
        bad.append(RowProblem(chunk.lines[row], replace(problem, place=place(path, chunk.lines[row]))))
    for row, dropped in encoded.dropped:
        here = place(path, chunk.lines[row])
        wanted = dropped.code == "BC028" and data.too_long == "drop"
        if data.strict and not wanted:
            fix = "Correct or remove the row, or set data.strict to false to leave such rows out"
            problem = Problem(code=dropped.code, problem=dropped.reason, fix=fix, place=here)
            bad.append(RowProblem(chunk.lines[row], problem))
        else:
            tally.dropped.add(dropped.code, dropped.reason, here)
    tally.rows += chunk.rows
    tally.truncated += encoded.truncated
    tally.cut_ends += encoded.cut_ends
    tally.labels.update(chunk.labels)
    tally.warnings.update(chunk.warnings)
    tally.warnings.update(encoded.warnings)
    if chunk.blank_lines:
        tally.warnings["BC009"] += chunk.blank_lines
    return sorted(bad, key=lambda each: abs(each.line))


def _refuse_too_little(report: PrepareReport, field: str, *, drop_too_long: bool) -> None:
    unfitting = [dropped for dropped in report.dropped if dropped.code == "BC028"]
    count = sum(dropped.count for dropped in unfitting)
    if not drop_too_long and count > MOST_UNFITTING * report.rows:
        places = ", ".join(unfitting[0].places)
        share = f"{count:,} of {report.rows:,} rows ({count / report.rows:.0%})"
        problem = f"{share} do not fit data.max_length, the first of them {places}"
        fix = f"Raise data.max_length, or set data.too_long to drop: more than {MOST_UNFITTING:.0%} would be left out"
        raise one(DataError, "BC028", problem, fix, field="data.max_length")
    if report.examples == 0:
        reasons = "; ".join(f"{dropped.count:,} × {dropped}" for dropped in (*report.dropped, *report.skipped))
        problem = f"no example is left of {report.rows:,} rows: {reasons or 'the stage made none of them'}"
        raise one(DataError, "BC008", problem, "Correct the rows that were left out", field=field)


def _refuse_changed(sources: Sequence[Source], hashes: Sequence[str], cache: Path) -> None:
    """Tokens of a file that was written to meanwhile would be kept under the fingerprint of what it held before."""
    problems = [
        Problem(
            code="BC076",
            place=str(source.path),
            problem="the file changed while it was read",
            fix="Wait until it is complete, and run again",
        )
        for source, before, now in zip(sources, hashes, content_hashes(sources, cache), strict=True)
        if before != now
    ]
    if problems:
        raise DataError(problems)


def _bar(total: int, shown: bool) -> Any:
    return tqdm(
        total=total, desc="Tokenizing", unit="B", unit_scale=True, disable=None if shown else True, file=sys.stderr
    )
