"""One run from its resolved configuration to its saved model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import BumbleError, RunError
from bumblecore_core.protocols import Engine
from bumblecore_core.registry import PluginSwitches, Registry
from bumblecore_core.run import output_dir
from bumblecore_core.run.agree import on_all_ranks
from bumblecore_core.run.assemble import Assembled, Prepared, assemble, prepare
from bumblecore_core.run.blame import Plugin, RunPlugins
from bumblecore_core.run.build import build, build_engine
from bumblecore_core.run.checkpoint.final import save_final
from bumblecore_core.run.checkpoint.folder import FINAL
from bumblecore_core.run.checkpoint.history import HistoryFile, resume_history
from bumblecore_core.run.checkpoint.resume import agreed_start, restore
from bumblecore_core.run.checkpoint.saver import Saver
from bumblecore_core.run.checkpoint.streams import seed_streams
from bumblecore_core.run.console import note
from bumblecore_core.run.data.loader import rank_windows, worker_deaths
from bumblecore_core.run.directory_lock import held
from bumblecore_core.run.earlier import find_finished_run, is_complete
from bumblecore_core.run.evaluation import evaluation_batches
from bumblecore_core.run.info import Status, run_info, run_result, write_info
from bumblecore_core.run.interrupts import EarlyInterrupts, Interrupts, Stopped
from bumblecore_core.run.lock import make_lock
from bumblecore_core.run.loggers import Loggers
from bumblecore_core.run.loop import LoopOptions, train
from bumblecore_core.run.model_parts import model_parts
from bumblecore_core.run.not_finite import cause_in
from bumblecore_core.run.overwrite import discard, restored_unless_replaced, set_aside
from bumblecore_core.run.profiling import PluginTimes, timed
from bumblecore_core.run.progress import Progress
from bumblecore_core.run.rank_comparison import compared_config, compared_contents, require_same, require_shared
from bumblecore_core.run.reference import Wanted, ask_before_training, ask_what_is_trained, wanted_reference
from bumblecore_core.run.speed import Speed, speed_of
from bumblecore_core.run.statistics import statistics_of
from bumblecore_core.values import RunInfo, RunResult, StepEvent

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, for the command line. `reused`: it had been completed before and nothing was done. `stopped_by`:
    the number of the signal that ended it or that came while it ended, else 0."""

    result: RunResult
    rank: int
    reused: bool = False
    stopped_by: int = 0


def execute(
    resolved: ResolvedRun,
    registry: Registry,
    switches: PluginSwitches,
    *,
    overwrite: bool,
    announce: Callable[[RunInfo], None],
    times: PluginTimes | None = None,
) -> Outcome:
    """Trains and saves, resuming from a checkpoint where there is one. `announce` gets the start summary on rank 0;
    `times` collects what plugins took. Raises `BumbleError` for whatever is wrong."""
    directory = Path(resolved.config.output_dir)
    since = time.time()  # before all processes meet: what one of them verifies later is verified for this run
    engine = timed(times, "engines", resolved.engine.name, build_engine(resolved, registry))
    try:
        require_same(engine, compared_config(resolved, engine, overwrite=overwrite))
        on_all_ranks(engine, lambda: _ready(engine, directory), "opening the output directory")
        require_shared(engine, directory)
        writes = engine.rank == 0
        with (
            EarlyInterrupts() as early,
            held(directory, needed=writes),
            restored_unless_replaced(directory, needed=writes),
        ):
            return _run(resolved, registry, switches, engine, early, overwrite, announce, times, since)
    finally:
        engine.close()


def _ready(engine: Engine, directory: Path) -> None:
    if engine.rank == 0:
        output_dir.require_writable(directory)


def _run(
    resolved: ResolvedRun,
    registry: Registry,
    switches: PluginSwitches,
    engine: Engine,
    early: EarlyInterrupts,
    overwrite: bool,
    announce: Callable[[RunInfo], None],
    times: PluginTimes | None,
    since: float,
) -> Outcome:
    started = time.perf_counter()
    config, directory = resolved.config, Path(resolved.config.output_dir)
    finished = find_finished_run(resolved, engine, overwrite=overwrite)
    loggers = on_all_ranks(engine, lambda: _loggers(resolved, engine, times), "making the loggers")
    start = None
    if finished is None:  # else its checkpoints are read only where it does not turn out to be this run
        start = agreed_start(engine, directory, config.checkpoint.resume, overwrite=overwrite)
    speaks = engine.rank == 0

    def prepare_and_describe() -> tuple[Prepared, Wanted | None, dict[str, Any]]:
        made = prepare(
            resolved, registry, switches, world_size=engine.world_size, progress=speaks, times=times, since=since
        )
        wanted = wanted_reference(made, registry, engine)
        return made, wanted, _lock(made, registry, engine, reference=wanted.weights if wanted else None)

    prepared, wanted, lock = on_all_ranks(
        engine, prepare_and_describe, "preparing data, tokenizer and model configuration"
    )
    require_same(engine, compared_contents(lock, prepared.plan))
    if finished is not None:
        if is_complete(resolved, engine, finished, lock):
            result = RunResult(status="complete", steps=0, final_dir=directory / FINAL, seconds=0.0, summary={})
            return Outcome(result=result, rank=engine.rank, reused=True)
        start = agreed_start(engine, directory, config.checkpoint.resume)
    warnings = [] if start is None else output_dir.check_start_here(resolved, start, lock)
    asked, told = ask_before_training(wanted, prepared, registry, engine, resuming=start is not None)
    warnings += told
    assembled = assemble(prepared, registry, engine, start.path if start else None, times)
    if wanted is not None and asked is None:
        asked = ask_what_is_trained(wanted, prepared, assembled, engine)
    speed = speed_of(engine, assembled.model, config.train.peak_tflops)
    history, past = HistoryFile(directory), list[StepEvent]()
    if start is None:
        seed_streams(config.train.seed, engine.rank)
        progress = Progress()
    else:
        progress = restore(start, engine, seed=config.train.seed)
        if speaks:
            history, past, lost = resume_history(start.path, start.step, directory)
            warnings += lost
    warnings += assembled.warnings
    info = run_info(prepared, assembled, start, progress, history=past, warnings=warnings, speed=speed, reference=asked)
    if overwrite:
        on_all_ranks(engine, lambda: set_aside(resolved) if speaks else None, "moving the earlier run aside")
    good_steps = progress.good_steps

    def replace_if_trained() -> None:
        if overwrite and speaks and progress.good_steps > good_steps:
            discard(directory)

    if speaks:
        output_dir.write_run_files(directory, resolved.to_dict(), lock)
        write_info(info, None, reads=resolved.stage.record.reads)
        announce(info)
    early.heed()
    loggers.start(info)
    engine.barrier()  # reading a checkpoint or starting a logger may take one rank longer than a collective's limit
    status: Status = "failed"
    final: Path | None = None
    problem = ""
    parts = model_parts(prepared, assembled)
    with Interrupts(speak=speaks) as interrupts:
        saver = Saver(
            engine=engine,
            output_dir=directory,
            section=config.checkpoint,
            parts=parts,
            lock=lock,
            loggers=loggers,
            progress=progress,
            history=history,
            interrupts=interrupts,
            pinned=[start.path] if start else [],
        )
        train_started = time.perf_counter()
        try:
            _train(prepared, assembled, engine, loggers, progress, saver, speed, replace_if_trained)
            saver.finish()
            if config.checkpoint.save_last:
                final = save_final(parts, engine, loggers, directory / FINAL, step=progress.step, lock=lock)
            status = "complete"
            stopped_by = interrupts.received
        except Stopped as stopped:
            note(f"{stopped}: saving a checkpoint, then stopping")
            saver.save(background=False)
            status, stopped_by = "interrupted", stopped.number
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        except BaseException as error:
            problem = str(error) if isinstance(error, BumbleError) else f"{type(error).__name__}: {error}"
            saver.abandon()
            raise
        finally:
            replace_if_trained()
            result = run_result(
                status,
                progress,
                final=final,
                started=started,
                train_started=train_started,
                saving=saver.time,
                problem=problem,
            )
            loggers.finish(result)
            if speaks:
                with suppress(OSError, RunError):  # a full disk must not hide why the run ended
                    write_info(info, result, reads=resolved.stage.record.reads)
    engine.barrier()  # a rank that dies while it ends the run must not leave the others with a success
    return Outcome(result=result, rank=engine.rank, stopped_by=stopped_by)


def _loggers(resolved: ResolvedRun, engine: Engine, times: PluginTimes | None) -> Loggers:
    chosen = resolved.loggers if engine.rank == 0 else ()
    return Loggers([(Plugin.of(one.record), timed(times, "loggers", one.name, build(one))) for one in chosen])


def _train(
    prepared: Prepared,
    assembled: Assembled,
    engine: Engine,
    loggers: Loggers,
    progress: Progress,
    saver: Saver,
    speed: Speed,
    after_step: Callable[[], None],
) -> None:
    config = prepared.resolved.config
    on_gpu = engine.device.type == "cuda"
    workers = config.data.num_workers
    options = LoopOptions(
        total_steps=prepared.plan.total_steps,
        logging_steps=config.train.logging_steps,
        eval_steps=config.train.eval_steps,
        average_tokens_across_devices=config.train.average_tokens_across_devices,
        max_skipped_steps=config.train.max_skipped_steps,
        locate=prepared.store.locate,
        speed=speed,
        plugins=RunPlugins.of(prepared.resolved),
        module=assembled.module,
        statistics=statistics_of(engine, assembled.module),
        explain=lambda *of_step: cause_in(prepared, assembled, engine, *of_step),
    )
    windows = rank_windows(
        store=prepared.store,
        stage=prepared.stage,
        plan=prepared.plan,
        rank=engine.rank,
        num_workers=workers if workers is not None else (2 if on_gpu else 0),
        pin_memory=on_gpu,
        start=progress.step,
    )
    with worker_deaths():
        train(
            engine=engine,
            windows=_followed(windows, after_step),
            evaluation=evaluation_batches(prepared, engine.rank),
            loggers=loggers,
            options=options,
            progress=progress,
            saver=saver,
        )


def _followed(windows: Iterator[T], after_each: Callable[[], None]) -> Iterator[T]:
    """`windows`, with `after_each` called when the next one is asked for."""
    for window in windows:
        yield window
        after_each()


def _lock(prepared: Prepared, registry: Registry, engine: Engine, *, reference: str | None) -> dict[str, Any]:
    return make_lock(
        resolved=prepared.resolved,
        registry=registry,
        model_dir=prepared.model_dir,
        model_config=prepared.model_config,
        tokenizer_fingerprint=prepared.tokenizer_fingerprint,
        template_date=prepared.template_date,
        store=prepared.store,
        eval_store=prepared.eval_store if prepared.eval_plan else None,
        world_size=engine.world_size,
        reference=reference,
    )
