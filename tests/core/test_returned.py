"""What methods of plugins return is held to their contracts; whoever raises in an engine's methods is named itself."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from bumblecore_core import (
    ChatSample,
    FeedbackSample,
    Metric,
    PluginError,
    PreferenceSample,
    RunError,
    StepOutput,
    StepResult,
    TextSample,
)
from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.data.detect import sample_fault
from bumblecore_core.run.guarded import GuardedEngine, guarded_adapter, guarded_stage
from bumblecore_core.run.returned import batch_fault, output_fault
from bumblecore_core.toolkit.packing import pack

SUM = torch.ones((), requires_grad=True) * 3
GOOD = StepOutput(loss_sum=SUM, count=3, metrics={"a": Metric(total=1.0), "b": Metric(total=SUM, reduce="last")})


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (SUM, "returned a Tensor, not a StepOutput"),
        (None, "returned None"),
        (replace(GOOD, loss_sum=3.0), "a float as loss_sum"),
        (replace(GOOD, loss_sum=SUM[None]), "of shape (1,), not a scalar"),
        (replace(GOOD, loss_sum=SUM.half()), "in torch.float16"),
        (replace(GOOD, loss_sum=SUM.detach()), "without a gradient"),
        (replace(GOOD, count="many"), "a str as count"),
        (replace(GOOD, count=None), "None as count"),
        (replace(GOOD, count=True), "a bool as count"),
        (replace(GOOD, count=float("nan")), "nan as count"),
        (replace(GOOD, count=-1), "-1 as count"),
        (replace(GOOD, count=torch.ones(2)), "a tensor of shape (2,) as count"),
        (replace(GOOD, metrics=["a"]), "a list as metrics"),
        (replace(GOOD, metrics={"a": 1.0}), "a float as the metric 'a'"),
        (replace(GOOD, metrics={"a": Metric(total=1.0, reduce="median")}), "reduces by 'median'"),
        (replace(GOOD, metrics={"a": Metric(total="1")}), "a str in the metric 'a'"),
        (replace(GOOD, metrics={"a": Metric(total=torch.ones(2))}), "of shape (2,) in the metric 'a'"),
    ],
)
def test_a_step_output_that_breaks_its_contract(output, words):
    assert words in output_fault(output, wants_gradient=True)


def test_good_outputs_pass():
    for count in (0, 3, 2.5, np.int64(3), torch.tensor(3)):
        assert output_fault(replace(GOOD, count=count), wants_gradient=True) is None
    for total in (SUM.double(), SUM.detach()):
        assert output_fault(replace(GOOD, loss_sum=total), wants_gradient=False) is None


BATCH = pack([np.arange(4), np.arange(3)], rows=(7, 9), count=5, extras={"x": np.ones(2)}, shared_prefixes=(0, 2))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (None, "returned None, not a Batch"),
        (replace(BATCH, input_ids=BATCH.input_ids.float()), "input_ids is torch.float32"),
        (replace(BATCH, input_ids=BATCH.input_ids[0]), "input_ids is torch.int64 of shape (7,)"),
        (replace(BATCH, position_ids=BATCH.position_ids[:, 1:]), "position_ids"),
        (replace(BATCH, position_ids=BATCH.position_ids + 1), "position_ids do not begin anew"),
        (replace(BATCH, cu_seqlens=BATCH.cu_seqlens.long()), "cu_seqlens is torch.int64"),
        (replace(BATCH, cu_seqlens=BATCH.cu_seqlens + 1), "cu_seqlens are not where"),
        (replace(BATCH, document_lengths=(7.0,)), "document_lengths"),
        (replace(BATCH, document_lengths=()), "document_lengths"),
        (replace(BATCH, shared_prefixes=(0,)), "shared prefix"),
        (replace(BATCH, input_ids=BATCH.input_ids + 7), "token ids from 7 to 10, of a vocabulary of 10"),
        (replace(BATCH, input_ids=BATCH.input_ids - 1), "token ids from -1"),
        (replace(BATCH, rows=(7,)), "of other rows"),
        (replace(BATCH, count=6), "the count 6"),
        (replace(BATCH, extras={"x": [1]}), "extra 'x' is no tensor"),
    ],
)
def test_a_batch_that_breaks_its_contract(batch, words):
    assert words in batch_fault(batch, {"rows": (7, 9), "counts": (2, 3)}, 10)


def test_a_good_batch_passes():
    for vocabulary in (4, None):
        assert batch_fault(BATCH, {"rows": (7, 9), "counts": (2, 3)}, vocabulary) is None


USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"text": "x"}, "a dict, which is no sample"),
        (TextSample(text=7), "text is an int, not text"),
        (ChatSample(messages="ab"), "messages is a str"),
        (ChatSample(messages=({"content": "a"},)), "messages"),
        (ChatSample(messages=(USER,), tools="f"), "tools is a str"),
        (PreferenceSample(prompt=(USER,), chosen=None, rejected=(USER,)), "chosen is None"),
        (FeedbackSample(prompt=(USER,), completion=(USER,), label=1), "label is an int, not a boolean"),
    ],
)
def test_a_sample_that_breaks_its_contract(sample, words):
    assert words in sample_fault(sample)
    assert sample_fault(ChatSample(messages=(USER,), tools=({"type": "function"},))) is None


class Stage:
    columns = ("ids",)
    reference = SimpleNamespace(columns=("reference_row",))

    def collate(self, *, examples, rows, counts):
        return None

    def preview(self, *, example):
        return [("a", True)] if example else 1 / 0

    def reference_step(self, *, policy, batch):
        return {"reference_row": torch.ones(3)}


def test_a_stage_is_named_and_stays_itself():
    stage = guarded_stage(Stage(), Plugin("stages", "odd", "odd_module"), 10)
    with pytest.raises(
        PluginError, match=r"BC060 stages.odd: the stage 'odd' \(module odd_module\) returned None, not"
    ):
        stage.collate(examples=[], rows=[], counts=[])
    with pytest.raises(PluginError, match="raised ZeroDivisionError"):
        stage.preview(example=None)
    with pytest.raises(PluginError, match=r"shape \(3,\) as reference_row, not a tensor of shape \(2,\)"):
        stage.reference_step(policy=None, batch=SimpleNamespace(rows=(1, 2)))
    assert stage.preview(example=1) == [("a", True)]
    assert stage.columns == ("ids",)
    assert getattr(stage, "least_rows", 1) == 1
    assert pickle.loads(pickle.dumps(stage)).columns == ("ids",)


def test_an_adapters_disk_errors_are_not_its_fault(tmp_path):
    class Adapter:
        how = staticmethod(lambda directory: None)

        def save(self, *, model, state, directory):
            self.how(directory)

        def lr_scale(self, *, name):
            return None

    inner = Adapter()
    adapter = guarded_adapter(inner, Plugin("adapters", "odd", "odd_module"))
    save = {"model": None, "state": {}, "directory": tmp_path}
    with pytest.raises(PluginError, match="saved no file"):
        adapter.save(**save)
    inner.how = lambda directory: (directory / "missing" / "x").write_text("x")
    with pytest.raises(FileNotFoundError):
        adapter.save(**save)
    inner.how = lambda directory: (directory / "x").write_text("x")
    adapter.save(**save)
    with pytest.raises(PluginError, match="returned None as the lr_scale of w"):
        adapter.lr_scale(name="w")


def module(name, source):
    made = ModuleType(name)
    exec(source, made.__dict__)
    return made


FOREIGN = module("foreign", "def boom(*args, **kwargs): raise ValueError('in a plugin')")
LIBRARY = module("some_library", "def run(call): return call()\ndef boom(): raise ValueError('in a library')")
OWN = module(
    "own_engine",
    """
class Engine:
    rank = 0
    def forward_backward(self, *, batch, scale, last): return batch()
    def advance_schedule(self, *, metric): return metric()
    def step(self, *, gradient_scale): return gradient_scale
    def training_state(self, *, copy): return copy
    def broken(self): raise KeyError(7)
""",
)
divide = module("own_engine.parts", "def divide(directory): return 1 / 0").divide
LOSS, SCHEDULER, ENGINE = (
    Plugin("losses", "of_a_plugin", "foreign.losses"),
    Plugin("schedulers", "of_torch", "elsewhere"),
    Plugin("engines", "own", "own_engine"),
)


def test_whoever_raised_in_an_engines_method_is_named():
    engine = GuardedEngine(OWN.Engine(), ENGINE, [LOSS, SCHEDULER], SCHEDULER)
    in_core = module("bumblecore_core.run.somewhere", "def boom(): raise ValueError('in the core')").boom
    forward = {"scale": 1.0, "last": True}
    for call, raising in (
        (lambda: engine.forward_backward(batch=FOREIGN.boom, **forward), LOSS),  # the backward pass of a loss, say
        (lambda: engine.forward_backward(batch=lambda: LIBRARY.run(FOREIGN.boom), **forward), LOSS),
        (lambda: engine.forward_backward(batch=LIBRARY.boom, **forward), ENGINE),
        (lambda: engine.advance_schedule(metric=LIBRARY.boom), SCHEDULER),
        (lambda: engine.advance_schedule(metric=None), ENGINE),
        (engine.broken, ENGINE),
    ):
        with pytest.raises(PluginError) as caught:
            call()
        assert caught.value.problems[0].field == raising.field
        assert str(raising) in caught.value.problems[0].problem
    with pytest.raises(ValueError, match="in the core"):
        engine.forward_backward(batch=in_core, **forward)
    assert engine.rank == 0


def test_what_an_engine_returns_is_checked():
    engine = GuardedEngine(OWN.Engine(), ENGINE, [], SCHEDULER)
    with pytest.raises(PluginError, match="returned None from step, not a StepResult"):
        engine.step(gradient_scale=None)
    result = StepResult(grad_norm=1.0, skipped=False)
    assert engine.step(gradient_scale=result) is result
    with pytest.raises(PluginError, match="an int for a batch"):
        engine.forward_backward(batch=lambda: 7, scale=1.0, last=True)
    with pytest.raises(PluginError, match=r"engine 'own' .* raised ZeroDivisionError"):
        engine.training_state(copy=divide)(None)
    with pytest.raises(OSError, match="disk"):
        engine.training_state(copy=disk_full)(None)
    with pytest.raises(RunError):
        engine.forward_backward(batch=say_it_better, scale=1.0, last=True)


def say_it_better():
    raise RunError([])


def disk_full(directory):
    raise OSError("disk")
