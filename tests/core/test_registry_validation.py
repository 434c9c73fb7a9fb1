"""Every way in which a plugin or a record can break the contract, and that the message says which."""

from __future__ import annotations

import types
from dataclasses import fields, replace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from bumblecore_core import (
    AttentionRecord,
    CommandRecord,
    DataFormatRecord,
    LossRecord,
    NoOptions,
    OptimizerRecord,
    Options,
    StageRecord,
    hookimpl,
)
from bumblecore_core.records import RECORDS
from bumblecore_core.registry import PluginInfo, record_problems
from bumblecore_core.registry.validate import BUILD_PARAMETERS, FIELD_CHECKS, plugin_problems, result_problems

INFO = PluginInfo(name="acme", distribution="acme-dist", version="1.0", module="acme")


def build(*, options):
    return None


LOSS = LossRecord(name="x", summary="X.", build=build, loss_kind="token")
STAGE = StageRecord(
    name="s", summary="S.", build=lambda *, options, context: None, reads="text", loss_kind="token", default_loss="x"
)
FORMAT = DataFormatRecord(name="f", summary="F.", build=build, detect=lambda row: None)
ATTENTION = AttentionRecord(name="a", summary="A.", load=lambda: None, unsupported=lambda *, device, dtype: None)
COMMAND = CommandRecord(name="c", summary="C.", load=lambda: None)


class Undescribed(Options):
    fine: int = Field(1, description="Fine.")
    bare: int = 1


class Loose(Options):
    model_config = ConfigDict(extra="allow")


class Inner(BaseModel):
    depth: int = Field(1, description="Depth.")


class Nested(Options):
    inner: list[Inner] | None = Field(None, description="Inner.")


class Tree(Options):
    below: list[Tree] = Field([], description="Trees.")
    bare: int = 1


class NamedName(Options):
    name: str = Field("x", description="Name.")


class NotOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")


@pytest.mark.parametrize("record", [LOSS, STAGE, FORMAT, ATTENTION, COMMAND], ids=lambda record: record.kind)
def test_a_good_record(record):
    assert record_problems(record) == []


@pytest.mark.parametrize(
    ("record", "field", "says"),
    [
        (replace(LOSS, name="Big"), "name", "lower-case"),
        (replace(LOSS, name="x-y"), "name", "lower-case"),
        (replace(LOSS, name="x\n"), "name", "lower-case"),
        (replace(LOSS, name=3), "name", "lower-case"),
        (replace(LOSS, summary="  "), "summary", "non-empty"),
        (replace(LOSS, summary="a\nb"), "summary", "one"),
        (replace(LOSS, options=NotOptions), "options", "subclass"),
        (replace(LOSS, options=list[str]), "options", "subclass"),  # on Python 3.10 an instance of type
        (replace(LOSS, options=NoOptions()), "options", "subclass"),
        (replace(LOSS, options=Undescribed), "options.bare", "no description"),
        (replace(LOSS, options=Loose), "options", "forbid"),
        (replace(LOSS, options=Nested), "options.inner", "forbid"),
        (replace(LOSS, options=Tree), "options.bare", "no description"),
        (replace(LOSS, options=NamedName), "options.name", "picks the plugin"),
        (replace(LOSS, build=None), "build", "not a callable"),
        (replace(LOSS, build=lambda: None), "build", "(options=…)"),
        (replace(LOSS, build=lambda *, options, extra: None), "build", "(options=…)"),
        (replace(LOSS, build=lambda opts: None), "build", "(options=…)"),
        (replace(LOSS, loss_kind="tokens"), "loss_kind", "token, preference"),
        (replace(STAGE, build=build), "build", "context=…"),
        (replace(STAGE, reads="texts"), "reads", "none of"),
        (replace(STAGE, model_from="hub"), "model_from", "none of"),
        (replace(STAGE, default_loss=""), "default_loss", "lower-case"),
        (replace(STAGE, smooth=1), "smooth", "not bool"),
        (replace(FORMAT, detect=lambda: None), "detect", "one row"),
        (replace(FORMAT, detect="chat"), "detect", "one row"),
        (replace(ATTENTION, unsupported=lambda device: None), "unsupported", "dtype=…"),
        (replace(ATTENTION, priority="high"), "priority", "not int"),
        (replace(ATTENTION, priority=True), "priority", "not int"),
        (replace(ATTENTION, load=lambda x: None), "load", "()"),
        (replace(COMMAND, load=None), "load", "not a callable"),
        (OptimizerRecord(name="o", summary="O.", build=build), "build", "groups=…"),
    ],
)
def test_a_bad_record_names_the_field(record, field, says):
    problems = record_problems(record)
    assert [problem.code for problem in problems] == ["BC055"]
    assert problems[0].field == f"bumble_{record.kind}[{record.name if isinstance(record.name, str) else 0}].{field}"
    assert says in problems[0].problem + problems[0].fix


def test_build_may_take_more_than_it_must():
    assert record_problems(replace(LOSS, build=lambda *, options, depth=1, **rest: None)) == []


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.kind)
def test_every_field_of_every_record_has_a_check(cls):
    assert {field.name for field in fields(cls)} <= FIELD_CHECKS.keys()
    assert ("build" in {field.name for field in fields(cls)}) == (cls.kind in BUILD_PARAMETERS)


@pytest.mark.parametrize(
    ("result", "field", "says"),
    [
        (None, "bumble_losses", "None, not a list"),
        (LOSS, "bumble_losses", "a LossRecord, not a list"),
        ([STAGE], "bumble_losses[0]", "a StageRecord, not LossRecord"),
        ([LOSS, "x"], "bumble_losses[1]", "a str, not LossRecord"),
    ],
)
def test_a_hook_that_returns_something_else(result, field, says):
    (problem,) = result_problems(result, "bumble_losses", INFO)
    assert (problem.code, problem.field) == ("BC055", field)
    assert says in problem.problem
    assert "plugin 'acme' of acme-dist 1.0 (acme)" in problem.problem


def module(**attributes: Any) -> types.ModuleType:
    """A module `acme` whose functions say that they were defined in it."""
    made = types.ModuleType("acme")
    for name, value in attributes.items():
        if isinstance(value, types.FunctionType):
            value.__module__, value.__name__ = "acme", name
        setattr(made, name, value)
    return made


def hook(**options):
    def implementation():
        return []

    return hookimpl(**options)(implementation)


def unmarked():
    return []


def test_a_good_module():
    assert plugin_problems(module(bumble_losses=hook(), helper=unmarked, BUMBLECORE_HOOK_API=1), INFO) == []


def test_a_misspelt_hook_names_the_nearest():
    (problem,) = plugin_problems(module(bumble_loses=hook()), INFO)
    assert (problem.code, problem.field) == ("BC058", "bumble_loses")
    assert "did you mean 'bumble_losses'" in problem.fix


def test_a_misspelt_specname():
    (problem,) = plugin_problems(module(my_losses=hook(specname="bumble_loses")), INFO)
    assert (problem.code, problem.field) == ("BC058", "my_losses")


def test_a_specname_is_a_hook():
    assert plugin_problems(module(my_losses=hook(specname="bumble_losses")), INFO) == []


def test_a_hook_without_the_mark():
    (problem,) = plugin_problems(module(bumble_losses=unmarked), INFO)
    assert problem.code == "BC058"
    assert "@hookimpl" in problem.fix


def test_an_unmarked_function_with_the_hooks_prefix():
    (problem,) = plugin_problems(module(bumble_loses=unmarked), INFO)
    assert problem.code == "BC058"


def test_an_optional_hook_of_another_version_is_left_alone():
    assert plugin_problems(module(bumble_samplers=hook(optionalhook=True)), INFO) == []


@pytest.mark.parametrize("option", ["tryfirst", "trylast", "wrapper", "hookwrapper"])
def test_a_place_in_the_call_order_is_refused(option):
    (problem,) = plugin_problems(module(bumble_losses=hook(**{option: True})), INFO)
    assert (problem.code, problem.field) == ("BC055", f"bumble_losses.{option}")


def test_a_hook_with_arguments_is_refused():
    (problem,) = plugin_problems(module(bumble_losses=hookimpl(lambda config: [])), INFO)
    assert (problem.code, problem.field) == ("BC055", "bumble_losses.arguments")


@pytest.mark.parametrize("stated", [2, (2, 3), [], "1"])
def test_another_hook_api(stated):
    (problem,) = plugin_problems(module(BUMBLECORE_HOOK_API=stated), INFO)
    assert (problem.code, problem.field) == ("BC059", "BUMBLECORE_HOOK_API")
    assert "acme-dist" in problem.problem


@pytest.mark.parametrize("stated", [1, (1, 2), {1}])
def test_a_supported_hook_api(stated):
    assert plugin_problems(module(BUMBLECORE_HOOK_API=stated), INFO) == []
