"""The training loop: windows of micro-batches, one optimizer step each, evaluation, metrics to the loggers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bumblecore_core.errors import Problem, RunError
from bumblecore_core.protocols import Engine
from bumblecore_core.run.blame import RunPlugins
from bumblecore_core.run.checkpoint.saver import VOTES, Saver
from bumblecore_core.run.console import say
from bumblecore_core.run.data.plan import MicroBatch, Window
from bumblecore_core.run.loggers import Loggers
from bumblecore_core.run.meter import Meter, Spent
from bumblecore_core.run.metrics import WindowMetrics
from bumblecore_core.run.module import TrainModule
from bumblecore_core.run.not_finite import UNEXPLAINED, Cause
from bumblecore_core.run.progress import Progress
from bumblecore_core.run.schedule_check import bad_rate
from bumblecore_core.run.slow_steps import SlowSteps
from bumblecore_core.run.speed import Speed, peak_memory
from bumblecore_core.run.statistics import Statistics, with_totals
from bumblecore_core.toolkit.token_weights import same_count
from bumblecore_core.values import Batch, StepEvent

Micros = Iterator[tuple[MicroBatch, Batch]]
LONG_WINDOW = 5.0  # seconds; in longer windows signals are looked for after each micro-batch


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """`locate(row)` names a row of the training store as `file:line`, for errors. `speed`: what the utilization is told
    against; None: it is not told."""

    total_steps: int
    logging_steps: int
    eval_steps: int | None
    average_tokens_across_devices: bool
    max_skipped_steps: int
    locate: Callable[[int], str]
    speed: Speed | None = None
    plugins: RunPlugins | None = None
    """Whom to name where a learning rate or metrics are wrong."""
    module: TrainModule | None = None
    """What the engine wraps; None where it wraps something else."""
    statistics: Statistics | None = None
    """What the stage sums over a step before it is computed."""
    explain: Callable[[Window, Mapping[str, float], bool], Cause] | None = None
    """What made a step's loss (True) or its gradient alone non-finite, the step's learning rates given. A
    collective."""


@dataclass(kw_only=True)
class _Tally:
    """What this rank did in a window."""

    tokens: int = 0
    items: int = 0
    flops: float = 0.0
    waited: float = 0.0


def train(
    *,
    engine: Engine,
    windows: Iterator[tuple[Window, Micros]],
    evaluation: Callable[[], Micros] | None,
    loggers: Loggers,
    options: LoopOptions,
    progress: Progress,
    saver: Saver,
) -> None:
    """Runs every window; raises `RunError` BC057 where losses stay non-finite or a window has nothing to learn, and
    `Stopped` where a signal ends the run: at the last boundary between steps everything is whole."""
    meter = Meter(progress, peak_flops=options.speed.peak if options.speed else 0.0)
    slow_steps = _slow_steps(engine, options.speed)
    saver.boundary()
    if evaluation is not None and progress.step and _evaluation_due(progress.step, options):
        _evaluate_once(engine, evaluation, loggers, options, progress, saver)
    started, window_seconds = time.perf_counter(), math.inf
    for window, micros in windows:
        _refuse_empty(window, options)
        between = saver.check_interrupt if window_seconds > LONG_WINDOW else None
        metrics, tally = _accumulate(engine, window, micros, options, between)
        elapsed = (time.perf_counter() - started) / engine.world_size
        mine = [float(not metrics.finite()), peak_memory(engine.device)]
        extra = [float(tally.tokens), float(tally.items), tally.flops, tally.waited, elapsed]
        extra += [*saver.votes(), *_in_place_of(engine, mine)]
        loss_sum, count, figures, (tokens, items, flops, waited, window_seconds, *sums) = metrics.reduce(engine, extra)
        votes, not_finite, memory = sums[:VOTES], sums[VOTES::2], sums[VOTES + 1 :: 2]

        rates = _checked_rates(engine, progress.step, options)
        result = engine.step(gradient_scale=_gradient_scale(window, count, not_finite, options))
        engine.advance_schedule(metric=None)
        progress.count_window(window, int(tokens))
        _count_skips(progress, result.skipped, not_finite, window, engine.rank, options, rates)
        if progress.step == options.total_steps:  # before the last checkpoint: what learned nothing is not saved
            _require_a_good_step(progress)

        seconds, started = time.perf_counter() - started, time.perf_counter()
        totals = {"tokens": float(progress.tokens), "skipped_steps": float(progress.skipped)}
        held = {**_rate_figures(rates), **totals}
        meter.add(
            {"loss": loss_sum / count if count else math.nan, **held, "grad_norm": result.grad_norm, **figures},
            latest=held.keys() | metrics.latest(),
            spent=Spent(
                seconds=seconds, tokens=tokens, supervised=items, flops=flops, waited=waited / engine.world_size
            ),
            memory=max(memory),
        )
        if slow_steps is not None:
            slow_steps.add(seconds=seconds - waited / engine.world_size, flops=flops)
        if progress.step % options.logging_steps == 0 or progress.step == options.total_steps:
            found = meter.take()
            progress.last.update(found)
            _report(found, "train", loggers, progress)
        reported = time.perf_counter()
        saver.boundary()
        saver.heed(votes)
        if evaluation is not None and _evaluation_due(progress.step, options):
            _evaluate_once(engine, evaluation, loggers, options, progress, saver)
        saver.save_if_due(options.total_steps)
        started += time.perf_counter() - reported  # evaluation and saving are no part of a step
    _require_a_good_step(progress)  # also of a run that was resumed at its end


def evaluate(
    engine: Engine, evaluation: Callable[[], Micros], options: LoopOptions, between: Callable[[], None] | None = None
) -> dict[str, float]:
    """Loss per counted item, its exponential as `perplexity` where the items are positions of the head (not pairs or
    rows), and the stage's metrics, over all ranks."""
    metrics, of_positions = WindowMetrics(options.module), True
    totals = options.statistics.totals(evaluation()) if options.statistics else {}
    for micro, batch in evaluation():
        of_positions = of_positions and batch.head_positions is None
        batch = with_totals(batch, totals) if totals else batch
        metrics.add(engine.evaluate(batch=batch.to(engine.device)), counts=micro.counts)
        if between is not None:
            between()
    loss_sum, count, figures, _ = metrics.reduce(engine)
    loss = loss_sum / count if count else math.nan
    perplexity = {"perplexity": math.exp(min(loss, 700.0))} if of_positions else {}
    return {"loss": loss, **perplexity, **figures}


def _evaluate_once(
    engine: Engine,
    evaluation: Callable[[], Micros],
    loggers: Loggers,
    options: LoopOptions,
    progress: Progress,
    saver: Saver,
) -> None:
    """Evaluates after the current step, unless that was done before the run was last interrupted."""
    if progress.evaluated == progress.step:
        return
    found = evaluate(engine, evaluation, options, saver.check_interrupt)
    engine.advance_schedule(metric=found["loss"])
    progress.evaluated, progress.evaluation_loss = progress.step, found["loss"]
    progress.last.update({f"eval_{name}": value for name, value in found.items()})
    _report(found, "eval", loggers, progress)


def _report(metrics: dict[str, float], split: Literal["train", "eval"], loggers: Loggers, progress: Progress) -> None:
    event = StepEvent(step=progress.step, epoch=progress.epoch, split=split, time=time.time(), metrics=metrics)
    progress.events.append(event)
    loggers.step(event)


def _accumulate(
    engine: Engine, window: Window, micros: Micros, options: LoopOptions, between: Callable[[], None] | None
) -> tuple[WindowMetrics, _Tally]:
    """Forward and backward of this rank's micro-batches; gradients end up as Σ ∇loss_sum ÷ the window's count."""
    metrics, tally = WindowMetrics(options.module), _Tally()
    if options.average_tokens_across_devices:
        scale = 1.0 / window.count
    else:
        scale = 1.0 / ((window.rank_count(engine.rank) or 1) * engine.world_size)
    last = len(window.micro_batches[engine.rank]) - 1
    asked = time.perf_counter()
    if options.statistics is not None:
        collected = list(micros)
        tally.waited += time.perf_counter() - asked
        micros = iter(options.statistics.complete(collected))
        asked = time.perf_counter()
    for at, (micro, batch) in enumerate(micros):
        tally.waited += time.perf_counter() - asked
        output = engine.forward_backward(
            batch=batch.to(engine.device), scale=scale if micro.counts else 0.0, last=at == last
        )
        metrics.add(output, counts=micro.counts)
        if micro.counts:
            tally.tokens += batch.tokens
            tally.items += batch.counted
            tally.flops += options.speed.flops.of(batch) if options.speed else 0.0
        if between is not None and at != last:
            between()
        asked = time.perf_counter()
    return metrics, tally


def _slow_steps(engine: Engine, speed: Speed | None) -> SlowSteps | None:
    """Watches the steps of rank 0. What an engine offloads may take its time."""
    if engine.rank != 0 or speed is None:
        return None
    return SlowSteps(peak_flops=0.0 if getattr(engine, "elsewhere", ()) else speed.peak, say=say)


def _in_place_of(engine: Engine, mine: Sequence[float]) -> list[float]:
    """This rank's values at its own place among zeros: the sum over ranks then holds those of each, one by one."""
    return [value * (rank == engine.rank) for rank in range(engine.world_size) for value in mine]


def _gradient_scale(window: Window, count: float, not_finite: list[float], options: LoopOptions) -> float:
    """What corrects the planned count to the one that the loss reported (a loss may leave positions out).

    NaN where a loss was not finite: a non-finite loss with finite gradients must not be stepped on either.
    """
    if any(not_finite):
        return math.nan
    if same_count(count, window.count) or count <= 0:
        return 1.0
    if not options.average_tokens_across_devices:
        problem = f"the loss counted {count:g} positions where the stage counted {window.count:g}"
        fix = "Set train.average_tokens_across_devices to true: without it each device must count as planned"
        raise RunError([Problem(code="BC039", field="train.average_tokens_across_devices", problem=problem, fix=fix)])
    return window.count / count


def _refuse_empty(window: Window, options: LoopOptions) -> None:
    if window.count > 0:
        return
    rows = [row for rank in window.micro_batches for micro in rank for row in micro.rows]
    places = ", ".join(options.locate(row) for row in rows[:5])
    problem = f"a whole optimizer step has no supervised token (rows {places})"
    raise RunError([Problem(code="BC008", problem=problem, fix="Remove these rows, or raise data.max_length")])


def _count_skips(
    progress: Progress,
    skipped: bool,
    not_finite: list[float],
    window: Window,
    rank: int,
    options: LoopOptions,
    rates: Mapping[str, float],
) -> None:
    progress.skipped += skipped
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
    if progress.skipped_in_a_row <= options.max_skipped_steps:
        return
    culprits = [number for number, flag in enumerate(not_finite) if flag] or [rank]
    rows = [row for micro in window.micro_batches[culprits[0]] for row in micro.rows]
    places = [options.locate(row) for row in rows[:8]]
    of_loss = any(not_finite)
    cause = options.explain(window, rates, of_loss) if options.explain is not None else UNEXPLAINED
    problem = f"the {'loss' if of_loss else 'gradient'} was not finite at step {progress.step}"
    problem += f" on rank {culprits[0]}"
    problem += f" (rows {rows[:8]}: {', '.join(places)})" if cause.rows else ""
    problem += f", {progress.skipped_in_a_row} steps in a row; {progress.skipped} skipped in all"
    problem += f": {cause.problem}" if cause.problem else ""
    fix = f"{cause.fix}; train.max_skipped_steps sets how many steps may be skipped"
    place, field = (places[0], "") if cause.rows else ("", cause.plugin.field if cause.plugin else "")
    raise RunError([Problem(code="BC057", place=place, field=field, problem=problem, fix=fix)])


def _checked_rates(engine: Engine, step: int, options: LoopOptions) -> dict[str, float]:
    """The learning rates of the step that is computed. Raises BC081 for one that is not finite or is negative."""
    rates = engine.learning_rates()
    if options.plugins is not None:
        for rate in rates.values():
            if not 0 <= rate < math.inf:
                raise bad_rate(options.plugins.scheduler, rate, step, options.total_steps)
    return rates


def _require_a_good_step(progress: Progress) -> None:
    """Raises `RunError` BC057 where every step was skipped: such a run has trained nothing and is not complete."""
    if progress.step and not progress.good_steps:
        problem = f"no optimizer step succeeded: in all {progress.step} the loss or the gradient was not finite"
        fix = "Lower optimizer.lr, or check the data and the model's weights; nothing was trained, so no model is saved"
        raise RunError([Problem(code="BC057", problem=problem, fix=fix)])


def _rate_figures(rates: Mapping[str, float]) -> dict[str, float]:
    """One `learning_rate`; one per group as well where groups differ."""
    values = list(rates.values())
    figures = {"learning_rate": values[0]}
    if len(set(values)) > 1:
        figures.update({f"learning_rate/{name}": value for name, value in rates.items()})
    return figures


def _evaluation_due(step: int, options: LoopOptions) -> bool:
    return step == options.total_steps or (options.eval_steps is not None and step % options.eval_steps == 0)
