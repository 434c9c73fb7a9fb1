"""What is told of a run: at its start to the console and to loggers, at its end, and in `run.info.json`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bumblecore_core.run.assemble import Assembled, Prepared
from bumblecore_core.run.checkpoint.resume import Start
from bumblecore_core.run.checkpoint.saver import SavingTime
from bumblecore_core.run.facts import data_facts, memory_facts, parameter_facts, space_facts, step_facts
from bumblecore_core.run.files import write_text
from bumblecore_core.run.model import parameter_counts
from bumblecore_core.run.progress import Progress
from bumblecore_core.run.speed import Speed
from bumblecore_core.toolkit.history import INFO_FILE
from bumblecore_core.values import RunInfo, RunResult, StepEvent

Status = Literal["complete", "interrupted", "failed"]


def run_info(
    prepared: Prepared,
    assembled: Assembled,
    start: Start | None,
    progress: Progress,
    *,
    history: Sequence[StepEvent],
    warnings: Sequence[str],
    speed: Speed,
    reference: str | None = None,
) -> RunInfo:
    """What loggers and the console are told before the first step."""
    config = prepared.resolved.config
    counts = parameter_counts(assembled.model)
    total, trainable = counts.total, counts.trainable
    weight_bytes = next(assembled.model.parameters()).element_size()
    resumed = [("resumed", f"{start.path}, after step {start.step:,}")] if start else []
    return RunInfo(
        output_dir=Path(config.output_dir),
        stage=prepared.resolved.stage.record.name,
        total_steps=prepared.plan.total_steps,
        first_step=progress.step,
        history=tuple(history),
        config=prepared.resolved.to_dict(),
        facts=[
            *resumed,
            *(("warning", warning) for warning in warnings),
            *prepared_facts(prepared),
            *([("reference", reference)] if reference else []),
            *parameter_facts(total, trainable),
            *memory_facts(
                config, assembled.model.config, total, trainable, weight_bytes, prepared.plan, assembled.placement
            ),
            ("peak for MFU", speed.words),
            *space_facts(config, total * weight_bytes, trainable * (12 if weight_bytes == 2 else 8)),
        ],
        features=assembled.features,
        sample=prepared.stage.preview(example=prepared.store.example(int(prepared.rows[0]))),
        smooth=prepared.resolved.stage.record.smooth,
    )


def prepared_facts(prepared: Prepared) -> list[tuple[str, str]]:
    """Data and step facts: what `bumble plan` and a run say alike."""
    eval_rows = 0 if prepared.eval_plan is None else len(prepared.eval_plan.rows)
    token_loss = prepared.resolved.stage.record.loss_kind == "token"
    return [
        *data_facts(prepared.store, prepared.rows, eval_rows, prepared.plan, token_loss=token_loss),
        *(("warning", warning) for warning in prepared.warnings),
        *step_facts(prepared.resolved.config, prepared.plan),
    ]


def run_result(
    status: Status,
    progress: Progress,
    *,
    final: Path | None,
    started: float,
    train_started: float,
    saving: SavingTime,
    problem: str,
) -> RunResult:
    """How the run ended; `started`, `train_started`: of `time.perf_counter`."""
    now = time.perf_counter()
    summary = {**progress.last, "tokens": float(progress.tokens), "skipped_steps": float(progress.skipped)}
    summary["checkpoints"] = float(saving.checkpoints)
    summary["saving_seconds"], summary["saving_background_seconds"] = saving.stalled, saving.background
    summary["saving_share"] = saving.stalled / max(now - train_started, 1e-9)
    return RunResult(
        status=status, steps=progress.step, final_dir=final, seconds=now - started, summary=summary, problem=problem
    )


def write_info(info: RunInfo, result: RunResult | None, *, reads: str) -> None:
    """Writes `run.info.json`, whose status is `running` until there is a result. `reads`: the stage's kind of
    sample."""
    told: dict[str, Any] = {
        "stage": info.stage,
        "reads": reads,
        "smooth": info.smooth,
        "total_steps": info.total_steps,
        "first_step": info.first_step,
        "facts": [list(fact) for fact in info.facts],
        "features": [list(feature) for feature in info.features],
        "sample": [list(segment) for segment in info.sample],
        "status": "running",
    }
    if result is not None:
        summary = {name: value if math.isfinite(value) else None for name, value in result.summary.items()}
        told |= {"status": result.status, "steps": result.steps, "seconds": result.seconds}
        told |= {"summary": summary, "problem": result.problem}
    write_text(info.output_dir / INFO_FILE, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
