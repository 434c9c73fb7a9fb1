"""What a plugin's `build` returns is held to its contract, and the plugin itself is named, with its module."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from bumblecore_core import LossRecord, ParameterGroup, PluginError
from bumblecore_core.protocols import AttentionFunctions
from bumblecore_core.run import built
from bumblecore_core.run.blame import Plugin, blamed
from bumblecore_core.run.guarded import guard_steps
from bumblecore_plugins.losses import bumble_losses


def refused(call, plugin) -> str:
    with pytest.raises(PluginError) as caught:
        call()
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("BC060", plugin.field)
    assert str(plugin) in problem.problem
    assert f"'{plugin.name}' (module {plugin.module})" in problem.problem
    return problem.problem


def plugin_of(kind):
    return Plugin(kind, "odd", "odd_module")


def methods(kind, *without, **attributes):
    names = [name for name in built.METHODS[kind] if name not in without]
    return SimpleNamespace(**dict.fromkeys(names, print), **attributes)


ENGINE = {
    "rank": 0,
    "world_size": 1,
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "holds_model": True,
    "background_saving": True,
}


@pytest.mark.parametrize(
    ("kind", "thing", "words"),
    [
        ("losses", None, "built None"),
        ("stages", None, "without encode, collate, step and preview"),
        ("stages", methods("stages", "step", columns=("a",)), "without step"),
        ("stages", methods("stages", columns="ids"), "'ids' as columns"),
        ("stages", methods("stages"), "None as columns"),
        ("data_formats", object(), "without convert"),
        ("adapters", methods("adapters", "save"), "without save"),
        ("loggers", methods("loggers", "start", "finish"), "without start and finish"),
        ("engines", None, "built None"),
        ("engines", methods("engines", **{**ENGINE, "device": "cpu"}), "a str as device"),
        ("engines", methods("engines", **{**ENGINE, "rank": 1}), "rank 1 of 1"),
    ],
)
def test_an_object_without_what_the_core_calls(kind, thing, words):
    plugin = plugin_of(kind)
    assert words in refused(lambda: built.check_built(plugin, thing), plugin)


def test_whole_objects_pass():
    for kind, attributes in (("stages", {"columns": ("a",)}), ("engines", ENGINE), ("adapters", {}), ("loggers", {})):
        built.check_built(plugin_of(kind), methods(kind, **attributes))


def groups(*sizes):
    return [
        ParameterGroup(name=f"g{size}", params=[torch.nn.Parameter(torch.ones(size))], decay=True) for size in sizes
    ]


def sgd(of, lr=0.1, **options):
    return torch.optim.SGD([{"params": group.params, "lr": lr, "name": group.name} for group in of], lr=lr, **options)


PAIR = groups(2, 3)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (None, "built None"),
        ({}, "built a dict"),
        (sgd(PAIR[:1]), "holds 1 of 2 parameters: it lacks some of g3"),
        (sgd([*PAIR, *groups(4)]), "holds 3 parameters of which the run trains 2"),
        (sgd(PAIR, lr=float("nan")), "learning rate nan in the group g2"),
    ],
)
def test_an_optimizer_that_is_none_or_holds_other_parameters(optimizer, words):
    plugin = plugin_of("optimizers")
    assert words in refused(lambda: built.check_optimizer(plugin, optimizer, PAIR), plugin)
    built.check_optimizer(plugin, sgd(PAIR), PAIR)


class Locked(LambdaLR):
    def state_dict(self):
        return {"lock": object()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda optimizer: None, "built None"),
        (lambda optimizer: lambda step: 1.0, "built a function"),
        (lambda optimizer: LambdaLR(sgd(PAIR), lambda step: 1.0), "of another optimizer"),
        (ReduceLROnPlateau, "lacks needs_metric=True"),
        (lambda optimizer: Locked(optimizer, lambda step: 1.0), "object at .lock, which a checkpoint cannot hold"),
    ],
)
def test_a_schedule_that_is_none_of_the_runs(make, words):
    plugin, optimizer = plugin_of("schedulers"), sgd(PAIR)
    check = partial(built.check_scheduler, plugin, make(optimizer), optimizer, needs_metric=False)
    assert words in refused(check, plugin)
    built.check_scheduler(plugin, LambdaLR(optimizer, lambda step: 1.0), optimizer, needs_metric=False)


class Spoiling(torch.optim.SGD):
    """Steps as it is told: raises, writes NaN, or keeps what cannot be saved."""

    how = ""

    def step(self, closure=None):
        if self.how == "raises":
            raise ValueError("no step")
        if self.how == "exits":
            raise SystemExit(0)
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.how == "nan":
                    parameter.data.mul_(float("nan"))
                self.state[parameter]["kept"] = object() if self.how == "object" else 1.0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", "raised ValueError: no step"),
        ("exits", "raised SystemExit: 0"),
        ("nan", "not finite in its first step"),
        ("object", "object at .0.kept, which a checkpoint cannot hold"),
    ],
)
def test_an_optimizer_that_steps_wrongly(how, words):
    plugin, optimizer = plugin_of("optimizers"), Spoiling(groups(2)[0].params, lr=0.1)
    guard_steps(optimizer, plugin)
    schedule = LambdaLR(optimizer, lambda step: 1.0)  # which takes the step apart and wraps it
    optimizer.how = how
    assert words in refused(optimizer.step, plugin)
    optimizer.how = ""
    optimizer.step()
    schedule.step()
    assert isinstance(optimizer, Spoiling)


def test_a_rate_that_overflows_is_not_the_optimizers_fault_at_its_first_step():
    optimizer = Spoiling(groups(2)[0].params, lr=1e38)
    guard_steps(optimizer, plugin_of("optimizers"))
    optimizer.how = "nan"
    optimizer.step()


@pytest.mark.parametrize(
    ("functions", "words"),
    [(None, "loaded None"), (print, "loaded a"), (AttentionFunctions(forward=7), "an int as forward")],
)
def test_an_attention_that_loads_something_else(functions, words):
    plugin = plugin_of("attentions")
    assert words in refused(lambda: built.check_attention(plugin, functions), plugin)
    assert "a bool from unsupported" in refused(lambda: built.check_unsupported(plugin, False), plugin)


def test_the_module_is_that_of_the_function_which_builds():
    def build(*, options):
        """Of this module."""

    record = LossRecord(name="odd", summary="x", build=partial(build, options=1), loss_kind="token")
    assert Plugin.of(record).module == __name__
    assert {Plugin.of(record).package for record in bumble_losses()} == {"bumblecore_plugins.losses"}


def test_what_says_it_better_passes():
    for error in (MemoryError(), torch.OutOfMemoryError("no room"), KeyboardInterrupt(), PluginError([])):
        with pytest.raises(type(error)), blamed(plugin_of("losses")):
            raise error
