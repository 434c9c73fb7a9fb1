"""The loop against a plain engine: scales, counts, skipped steps, evaluation, loggers that break."""

import math

import numpy as np
import pytest
import torch

from bumblecore_core.errors import PluginError, RunError
from bumblecore_core.run.blame import Plugin, RunPlugins
from bumblecore_core.run.checkpoint.saver import VOTES
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.run.loggers import Loggers
from bumblecore_core.run.loop import LoopOptions, train
from bumblecore_core.run.progress import Progress
from bumblecore_core.values import Batch, Metric, StepOutput, StepResult

KEYS = ("stage", "loss", "optimizer", "scheduler", "engine")
COUNTS = np.asarray([3, 1, 4, 1, 5, 9, 2])


class PlainEngine:
    """Trains one scalar weight whose loss on a row is `weight × row`; keeps what it was asked."""

    def __init__(self, *, poison=(), count_share=1.0, rank=0, world_size=1):
        self.rank, self.world_size, self.device = rank, world_size, torch.device("cpu")
        self.gradient, self.steps, self.poison, self.count_share = 0.0, [], set(poison), count_share
        self.metrics_seen, self.lasts = [], []

    def forward_backward(self, *, batch, scale, last):
        self.lasts.append(last)
        rows = batch.rows
        loss = math.nan if self.poison & set(rows) else float(sum(rows))
        self.gradient += loss * scale
        counts = batch.count * self.count_share
        return StepOutput(
            loss_sum=torch.tensor(loss),
            count=counts,
            metrics={
                "mean": Metric(total=sum(rows), weight=len(rows)),
                "sum": Metric(total=len(rows), reduce="sum"),
                "last": Metric(total=rows[-1], reduce="last"),
            },
        )

    def evaluate(self, *, batch):
        return StepOutput(loss_sum=torch.tensor(2.0 * batch.count), count=batch.count)

    def step(self, *, gradient_scale):
        gradient, self.gradient = self.gradient * gradient_scale, 0.0
        self.steps.append(gradient)
        return StepResult(grad_norm=abs(gradient), skipped=not math.isfinite(gradient))

    def advance_schedule(self, *, metric):
        self.metrics_seen.append(metric)

    def learning_rates(self):
        return {"decay": 0.5, "no_decay": 0.5}

    def sum_over_ranks(self, values):
        return list(values)


class SavesNothing:
    """Stands in for the saver."""

    def boundary(self):
        pass

    def votes(self):
        return [0.0] * VOTES

    def heed(self, sums):
        assert sums == [0.0] * VOTES

    def save_if_due(self, total_steps):
        pass

    def check_interrupt(self):
        pass


class Recorder:
    def __init__(self):
        self.events = []

    def step(self, *, event):
        self.events.append(event)


def run(engine, *, micro=2, accumulation=2, steps=3, evaluation=None, loggers=(), head_positions=None, **options):
    plan = BatchPlan(
        lengths=np.full(len(COUNTS), 4, dtype=np.int32),
        counts=COUNTS,
        rows=np.arange(len(COUNTS)),
        options=PlanOptions(
            micro_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            world_size=engine.world_size,
            seed=0,
            packing=False,
            max_length=8,
        ),
        max_steps=steps,
    )

    def batches(window):
        for micro_batch in window.micro_batches[engine.rank]:
            empty = torch.zeros(1, 1)
            yield (
                micro_batch,
                Batch(
                    input_ids=empty,
                    position_ids=empty,
                    cu_seqlens=empty,
                    document_lengths=(4,),
                    rows=micro_batch.rows,
                    count=micro_batch.count,
                    head_positions=head_positions,
                ),
            )

    recorder = Recorder()
    settings = {"eval_steps": None, "average_tokens_across_devices": True, "max_skipped_steps": 1, "logging_steps": 1}
    progress = Progress()
    train(
        engine=engine,
        windows=((window, batches(window)) for window in plan.windows()),
        evaluation=None if evaluation is None else lambda: batches(plan.window(0)),
        loggers=Loggers([(Plugin("loggers", name, "here"), each) for name, each in [*loggers, ("recorder", recorder)]]),
        options=LoopOptions(
            total_steps=plan.total_steps, locate=lambda row: f"data.json:{row + 1}", **{**settings, **options}
        ),
        progress=progress,
        saver=SavesNothing(),
    )
    return plan, recorder.events, progress


def expected_gradient(window):
    rows = [row for micro in window.micro_batches[0] for row in micro.rows]
    return sum(rows) / COUNTS[rows].sum()


@pytest.mark.parametrize(("micro", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_a_steps_gradient_is_the_sum_over_the_count_of_the_whole_window(micro, accumulation):
    engine = PlainEngine()
    plan, events, _ = run(engine, micro=micro, accumulation=accumulation)
    for step, (gradient, event) in enumerate(zip(engine.steps, events, strict=True)):
        assert gradient == pytest.approx(expected_gradient(plan.window(step)))
        assert event.metrics["loss"] == pytest.approx(gradient)


def test_a_loss_that_counts_less_than_planned_is_still_divided_by_its_own_count():
    engine = PlainEngine(count_share=0.5)
    plan, _, _ = run(engine)
    for step, gradient in enumerate(engine.steps):
        assert gradient == pytest.approx(2 * expected_gradient(plan.window(step)))


def test_metrics_reduce_as_they_say():
    plan, events, _ = run(PlainEngine())
    for step, event in enumerate(events):
        micros = plan.window(step).micro_batches[0]
        rows = [row for micro in micros for row in micro.rows]
        assert event.metrics["mean"] == pytest.approx(np.mean(rows))
        assert event.metrics["sum"] == len(rows)
        assert event.metrics["last"] == micros[-1].rows[-1]


def test_only_the_windows_last_micro_batch_is_marked():
    engine = PlainEngine()
    plan, _, _ = run(engine)
    expected = []
    for window in plan.windows():
        expected += [False] * (len(window.micro_batches[0]) - 1) + [True]
    assert engine.lasts == expected


def test_a_loss_that_is_not_finite_skips_the_step_and_is_counted():
    engine = PlainEngine(poison=[3])
    _, events, progress = run(engine, steps=2)
    assert progress.skipped == 1
    assert sum(not math.isfinite(gradient) for gradient in engine.steps) == 1
    assert any(event.metrics.get("skipped_steps") == 1 for event in events)


def test_losses_that_stay_not_finite_end_the_run_and_name_step_rank_and_rows():
    with pytest.raises(RunError) as caught:
        run(PlainEngine(poison=range(7)), steps=6)
    line = str(caught.value)
    assert "BC057" in line
    assert "step 2 on rank 0" in line
    assert "data.json:" in line


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_whose_every_step_was_skipped_is_an_error(steps):
    with pytest.raises(RunError, match=f"BC057.*no optimizer step succeeded: in all {steps} "):
        run(PlainEngine(poison=range(7)), steps=steps, max_skipped_steps=3)
    run(PlainEngine(poison=[0]), steps=3, max_skipped_steps=3)


def test_a_window_without_supervised_tokens_names_its_rows(monkeypatch):
    monkeypatch.setitem(globals(), "COUNTS", np.zeros(7, dtype=int))
    with pytest.raises(RunError, match=r"BC008.*data\.json:"):
        run(PlainEngine())


def test_evaluation_runs_when_due_and_steps_plateau_schedules():
    engine = PlainEngine()
    _, events, progress = run(engine, steps=5, evaluation=True, eval_steps=2)
    assert [event.step for event in events if event.split == "eval"] == [2, 4, 5]
    assert [metric for metric in engine.metrics_seen if metric is not None] == [2.0, 2.0, 2.0]
    assert progress.last["eval_loss"] == 2.0
    assert engine.metrics_seen.count(None) == 5


def test_only_a_loss_per_position_has_a_perplexity():
    found = []
    for head_positions in (None, 8):  # 8: of what is counted, such as pairs, the head computes other numbers
        _, events, _ = run(PlainEngine(), evaluation=True, head_positions=head_positions)
        found += [event.metrics for event in events if event.split == "eval"]
    assert found == [{"loss": 2.0, "perplexity": math.exp(2.0)}, {"loss": 2.0}]


def test_a_logger_that_raises_is_reported_once_and_dropped(capsys):
    class Broken:
        def step(self, *, event):
            raise ValueError("no pen")

    _, events, _ = run(PlainEngine(), loggers=[("broken", Broken())])
    assert len(events) == 3
    said = capsys.readouterr().err
    assert said.count("BC060 logger 'broken' raised ValueError: no pen") == 1


def test_a_rate_that_goes_wrong_while_training_names_the_scheduler():
    engine = PlainEngine()
    engine.learning_rates = lambda: {"decay": 0.5 if len(engine.steps) < 2 else math.nan}
    plugins = RunPlugins(**{key: Plugin(f"{key}s", "odd", "here") for key in KEYS}, adapter=None)
    with pytest.raises(PluginError, match=r"BC081 schedulers.odd: .* a learning rate of nan in step 3 of 3"):
        run(engine, plugins=plugins)
    assert len(engine.steps) == 2


def test_logging_steps_thin_the_events_but_keep_the_last():
    _, events, _ = run(PlainEngine(), steps=5, logging_steps=2)
    assert [event.step for event in events] == [2, 4, 5]
