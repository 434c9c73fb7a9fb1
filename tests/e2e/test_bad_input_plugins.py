"""Rows 66 to 68 of bad input: plugins that build or return the wrong thing, as a user meets them in a run."""

import json

import pytest
from safetensors.torch import load_file

from bad_input import good
from bumblecore_core.run import sum_check

ODD = """
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from bumblecore_core import (
    AdapterRecord, CommandRecord, EngineRecord, LoggerRecord, LossRecord, Metric, OptimizerRecord, SchedulerRecord,
    StageRecord, StepOutput, hookimpl,
)
from bumblecore_core.toolkit.causal import CausalStage, causal_example


def output(hidden, head, targets, **changes):
    total = cross_entropy(head.logits(hidden).float(), targets, reduction="sum")
    given = {"loss_sum": total, "count": targets.numel(), **{k: f(total) for k, f in changes.items()}}
    return StepOutput(**given)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no way back")


class Sometimes:
    calls = 0

    def __call__(self, **inputs):
        self.calls += 1
        return output(**inputs, metrics=lambda total: {"odd": Metric(total=1.0)} if self.calls % 2 else {})


def loss(**changes):
    return lambda **inputs: output(**inputs, **changes)


LOSSES = {
    "tensor": lambda hidden, head, targets: output(hidden, head, targets).loss_sum,
    "mean": lambda hidden, head, targets: output(hidden, head, targets, loss_sum=lambda total: total / len(targets)),
    "exits": lambda **inputs: exit(0),
    "backward": loss(loss_sum=Backward.apply),
    "nan": loss(loss_sum=lambda total: total * float("nan")),
    "nan_gradient": loss(loss_sum=lambda total: total + (total * 0).sqrt()),
    "sometimes": Sometimes(),
}


@hookimpl
def bumble_losses():
    return [
        LossRecord(name=name, summary="x", loss_kind="token", build=lambda *, options, made=made: made)
        for name, made in LOSSES.items()
    ]


class Late(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        super().step()
        self.steps += 1
        if self.steps == 2:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))


def sgd(kind):
    return lambda *, options, groups: kind([{"params": g.params, "lr": 1e-3, "name": g.name} for g in groups], lr=1e-3)


@hookimpl
def bumble_optimizers():
    return [
        OptimizerRecord(name="none", summary="x", build=lambda *, options, groups: None),
        OptimizerRecord(name="late", summary="x", build=sgd(Late)),
    ]


class Gone(LRScheduler):
    def get_lr(self):
        return [1e-3 / (3 - self.last_epoch) for _ in self.base_lrs]


@hookimpl
def bumble_schedulers():
    return [SchedulerRecord(name="gone", summary="x", build=lambda *, options, optimizer, total_steps: Gone(optimizer))]


class Averages(CausalStage):
    def step(self, **inputs):
        found = super().step(**inputs)
        found.loss_sum = found.loss_sum / found.count
        return found


def encode(samples, context):
    tokens = context.tokenizer([sample.text for sample in samples], truncation=True, max_length=context.max_length)
    return [causal_example(ids, [(0, len(ids))]) for ids in tokens.input_ids]


@hookimpl
def bumble_stages():
    return [
        StageRecord(
            name="averages", summary="x", reads="text", loss_kind="token", default_loss="causal_lm",
            model_from="config", build=lambda *, options, context: Averages(encode, context),
        )
    ]


@hookimpl
def bumble_loggers():
    return [LoggerRecord(name="nothing", summary="x", build=lambda *, options: None)]


def engine(*, options, context):
    from bumblecore_plugins.engines import TorchOptions
    from bumblecore_plugins.engines.torch_engine import TorchEngine

    class Silent(TorchEngine):
        def step(self, *, gradient_scale):
            super().step(gradient_scale=gradient_scale)

    return Silent(options=TorchOptions(), context=context)


@hookimpl
def bumble_engines():
    return [EngineRecord(name="silent", summary="x", build=engine)]


def command():
    import click

    return click.Command("boom", callback=lambda: 1 / 0)


@hookimpl
def bumble_commands():
    return [CommandRecord(name="boom", summary="x", load=command)]
"""


@pytest.fixture
def odd(scene):
    """Runs a config with the module above as a plugin."""
    scene.file("odd_one.py", ODD)
    scene.rows([{"text": row["messages"][1]["content"]} for row in good(12)])

    def run(*, code=2, command="run", stage="pretrain", **settings):
        train = {
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 3,
            "max_skipped_steps": 0,
            **settings.pop("train", {}),
        }
        config = scene.config(stage, **{"scheduler": "constant", "train": train, **settings})
        return scene.call("-p", "odd_one", command, config, code=code)

    return run


@pytest.mark.parametrize(
    ("code", "kind", "name", "words"),
    [
        ("BC060", "losses", "tensor", "returned a Tensor, not a StepOutput. A loss returns StepOutput("),
        ("BC060", "losses", "exits", "raised SystemExit: 0"),
        ("BC060", "losses", "backward", "raised ValueError: no way back"),
        ("BC060", "losses", "sometimes", "returned the metrics odd for some micro-batches of a step alone"),
        ("BC082", "losses", "mean", "returned a mean, not a sum"),
        ("BC082", "stages", "averages", "divided the loss's sum by its count"),
        ("BC060", "optimizers", "none", "built None. An optimizer's build returns a torch.optim.Optimizer"),
        ("BC081", "schedulers", "gone", "raised ZeroDivisionError"),
        ("BC060", "loggers", "nothing", "built None without start, step, saved and finish"),
        ("BC060", "engines", "silent", "returned None from step, not a StepResult"),
    ],
)
def test_rows_66_and_67_name_the_plugin_its_module_and_the_contract(odd, code, kind, name, words):
    key = kind.removesuffix("s") if kind != "losses" else "loss"
    settings = {"stage": name} if key == "stage" else {key + "s" * (key == "logger"): name}
    settings = {"loggers": ["metrics_json", name]} if key == "logger" else settings
    odd(**settings).only(code, f" {kind}.{name}: the {key} '{name}' (module odd_one) {words}", "author")


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"loss": "nan"}, "losses.nan", "the loss 'nan' (module odd_one) computed it from finite numbers"),
        ({"loss": "nan_gradient"}, "losses.nan_gradient", "(module odd_one) computed its gradient from finite numbers"),
        ({"optimizer": "late"}, "optimizers.late", "the optimizer 'late' (module odd_one) wrote weights that are not"),
    ],
)
def test_row_68_what_computed_a_non_finite_loss_is_named_and_neither_data_nor_rate(odd, settings, field, words):
    line = odd(**settings).only("BC057", f" {field}: ", words, "report this to its author")
    assert "rows.jsonl" not in line
    assert "optimizer.lr" not in line


def test_row_68_rows_and_rate_are_mentioned_where_they_can_be_the_cause(odd, scene):
    for rate, words in (
        (1e36, "the model's backward pass is not"),
        (2e38, " optimizers.adamw: "),
    ):
        huge = {"name": "adamw", "lr": rate, "weight_decay": 0.0}
        line = odd(optimizer=huge, train={"max_grad_norm": None}, output_dir=f"out{rate}").only("BC057", words)
        assert "Lower optimizer.lr" in line
        assert (f"{scene.directory / 'rows.jsonl'}:" in line) == (rate < 2e38)


def test_a_plugins_command_that_raises_is_named(scene):
    scene.file("odd_one.py", ODD)
    scene.call("-p", "odd_one", "boom").only("BC060", " commands.boom: the command 'boom' (module odd_one) raised Zero")


def test_a_plan_finds_schedules_that_fail_before_weights_are_there(odd):
    odd(command="plan", scheduler="gone").only("BC081", " schedulers.gone", "(module odd_one)")
    for options, words in (
        ({"name": "cosine", "warmup_steps": 4}, "a warm-up of 4 steps is longer than the run of 3"),
        ({"name": "cosine_with_min_lr", "min_lr": 1.0}, "min_lr 1 is above the learning rate"),
        ({"name": "polynomial", "lr_end": 1.0}, "lr_end 1 is above the learning rate"),
    ):
        line = odd(command="plan", scheduler=options).lines[0]
        assert words in line
        assert "scheduler" in line.split(": ")[0]


def test_a_schedule_that_warms_up_over_the_whole_run_ends_it_whole(odd, scene):
    odd(scheduler={"name": "polynomial", "warmup_ratio": 1.0}, code=0)
    history = json.loads((scene.directory / "out" / "metrics.json").read_text())
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0, 2e-5 / 3, 4e-5 / 3])


def test_the_sum_check_changes_no_number_of_a_run(odd, scene, monkeypatch):
    config = json.loads((scene.model / "config.json").read_text())
    for file in scene.model.iterdir():
        scene.file(f"dropout/{file.name}", file.read_bytes())
    scene.file("dropout/config.json", json.dumps({**config, "attention_dropout": 0.3}))
    found = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(sum_check.SumCheck, "decides", lambda self, inputs: True)
        out = scene.directory / f"out-{checked}"
        odd(model__path=str(scene.directory / "dropout"), output_dir=str(out), code=0)
        history = json.loads((out / "metrics.json").read_text())
        found.append((load_file(out / "final" / "model.safetensors"), [entry["loss"] for entry in history]))
    (weights, losses), (others, other_losses) = found
    assert losses == other_losses
    assert all(weights[name].equal(others[name]) for name in weights)
