"""One run from its resolved configuration to its saved model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from bumblecore_core.config.resolved import ResolvedRun, Selected
from bumblecore_core.protocols import Engine
from bumblecore_core.registry import PluginSwitches, Registry
from bumblecore_core.run import output_dir
from bumblecore_core.run.assemble import (
    Assembled,
    Prepared,
    assemble,
    build,
    build_engine,
    evaluation_batches,
    prepare,
)
from bumblecore_core.run.data.loader import rank_windows
from bumblecore_core.run.facts import data_facts, memory_facts, parameter_facts, step_facts
from bumblecore_core.run.loggers import Loggers
from bumblecore_core.run.loop import LoopOptions, Progress, train
from bumblecore_core.run.saving import save_model
from bumblecore_core.values import RunInfo, RunResult

Status = Literal["complete", "interrupted", "failed"]
LIBRARIES = ("bumblecore", "torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, for the command line. `reused`: it had been completed before and nothing was done."""

    result: RunResult
    rank: int
    reused: bool = False


def execute(
    resolved: ResolvedRun,
    registry: Registry,
    switches: PluginSwitches,
    *,
    overwrite: bool,
    announce: Callable[[RunInfo], None],
) -> Outcome:
    """Trains and saves. `announce` gets the start summary on rank 0. Raises `BumbleError` for whatever is wrong."""
    started = time.perf_counter()
    directory = Path(resolved.config.output_dir)
    engine = build_engine(resolved)
    try:
        if _done_before(resolved, engine, directory, overwrite):
            result = RunResult(
                status="complete", steps=0, final_dir=directory / output_dir.FINAL, seconds=0.0, summary={}
            )
            return Outcome(result=result, rank=engine.rank, reused=True)
        prepared = prepare(resolved, registry, switches, world_size=engine.world_size, progress=engine.rank == 0)
        assembled = assemble(prepared, registry, engine)
        loggers = _loggers(resolved, engine)
        info = _info(prepared, assembled)
        if engine.rank == 0:
            output_dir.write_run_files(directory, resolved.to_dict(), _lock(prepared, registry))
            announce(info)
        loggers.start(info)
        progress = Progress()
        status: Status = "failed"
        final: Path | None = None
        try:
            _train(prepared, engine, loggers, progress)
            if resolved.config.checkpoint.save_last:
                final = _save(prepared, assembled, engine, loggers, directory / output_dir.FINAL)
            status = "complete"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            result = _result(status, progress, final, started)
            loggers.finish(result)
        return Outcome(result=result, rank=engine.rank)
    finally:
        engine.close()


def _done_before(resolved: ResolvedRun, engine: Engine, directory: Path, overwrite: bool) -> bool:
    """Whether this very run is complete already; rank 0 looks and tells the others."""
    done = False
    if engine.rank == 0:
        output_dir.require_writable(directory)
        if overwrite:
            output_dir.clear(directory, config=resolved.path)
        done = output_dir.is_complete(directory, resolved.to_dict())
    return bool(engine.sum_over_ranks([float(done)])[0])


def _loggers(resolved: ResolvedRun, engine: Engine) -> Loggers:
    chosen = resolved.loggers if engine.rank == 0 else ()
    return Loggers([(one.name, build(one)) for one in chosen])


def _train(prepared: Prepared, engine: Engine, loggers: Loggers, progress: Progress) -> None:
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
    )
    windows = rank_windows(
        store=prepared.store,
        stage=prepared.stage,
        plan=prepared.plan,
        rank=engine.rank,
        num_workers=workers if workers is not None else (2 if on_gpu else 0),
        pin_memory=on_gpu,
    )
    evaluation = evaluation_batches(prepared, engine.rank)
    train(engine=engine, windows=windows, evaluation=evaluation, loggers=loggers, options=options, progress=progress)


def _save(prepared: Prepared, assembled: Assembled, engine: Engine, loggers: Loggers, final: Path) -> Path:
    state = engine.model_state()
    if engine.rank == 0:
        save_model(
            directory=final,
            model=assembled.model,
            state=state,
            tokenizer=prepared.tokenizer,
            adapter=assembled.adapter,
            max_shard_size=prepared.resolved.config.checkpoint.max_shard_size,
        )
        loggers.saved(final)
    engine.barrier()
    return final


def _info(prepared: Prepared, assembled: Assembled) -> RunInfo:
    config = prepared.resolved.config
    parameters = list(assembled.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    weight_bytes = parameters[0].element_size()
    return RunInfo(
        output_dir=Path(config.output_dir),
        stage=prepared.resolved.stage.record.name,
        total_steps=prepared.plan.total_steps,
        first_step=0,
        config=prepared.resolved.to_dict(),
        facts=[
            *prepared_facts(prepared),
            *parameter_facts(total, trainable),
            *memory_facts(config, assembled.model.config, total, trainable, weight_bytes, prepared.plan),
        ],
        features=assembled.features,
        sample=prepared.stage.preview(example=prepared.store.example(int(prepared.rows[0]))),
    )


def prepared_facts(prepared: Prepared) -> list[tuple[str, str]]:
    """Data and step facts: what `bumble plan` and a run say alike."""
    eval_rows = 0 if prepared.eval_plan is None else len(prepared.eval_plan.rows)
    return [
        *data_facts(prepared.store, prepared.rows, eval_rows, prepared.plan),
        *(("warning", warning) for warning in prepared.warnings),
        *step_facts(prepared.resolved.config, prepared.plan),
    ]


def _result(status: Status, progress: Progress, final: Path | None, started: float) -> RunResult:
    seconds = time.perf_counter() - started
    summary = {**progress.last, "tokens": float(progress.tokens), "skipped_steps": float(progress.skipped)}
    return RunResult(status=status, steps=progress.step, final_dir=final, seconds=seconds, summary=summary)


def _lock(prepared: Prepared, registry: Registry) -> dict[str, Any]:
    """What made this run: plugins in use with their distributions, library versions, data fingerprints."""
    resolved = prepared.resolved
    chosen: list[Selected[Any]] = [resolved.stage, resolved.loss, resolved.optimizer, resolved.scheduler]
    chosen += [resolved.engine, *resolved.loggers]
    if resolved.adapter is not None:
        chosen.append(resolved.adapter)
    return {
        "plugins": [
            {
                "kind": one.record.kind,
                "name": one.record.name,
                "distribution": registry.provided(one.record.kind, one.record.name).plugin.distribution,
                "version": registry.provided(one.record.kind, one.record.name).plugin.version,
            }
            for one in chosen
        ],
        "libraries": {name: version(name) for name in LIBRARIES},
        "data": prepared.store.fingerprint,
        "evaluation_data": prepared.eval_store.fingerprint if prepared.eval_plan else None,
    }
