"""How option types and defaults are shown."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest
from pydantic import ConfigDict, Field

from bumblecore_core import Options
from bumblecore_core.registry import describe_options


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class Inner(Options):
    depth: int = Field(3, gt=0, description="Depth.")


class Shown(Options):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    needed: int = Field(description="Needed.")
    bounded: float = Field(0.5, gt=0, le=1, description="Bounded.")
    maybe: str | None = Field(None, description="Two\n    lines.")
    chosen: Literal["a", "b"] = Field("a", description="Chosen.")
    words: list[str] = Field(["x", "y"], description="Words.")
    made: dict[str, int] = Field(default_factory=dict, description="Made.")
    flag: bool = Field(True, description="Flag.")
    mode: Mode = Field(Mode.SLOW, description="Mode.")
    pair: tuple[int, ...] = Field((1, 2), description="Pair.")
    anything: Any = Field(None, description="Anything.")
    size: str = Field("1GB", pattern=r"^\d+GB$", description="Size.")
    inner: Inner = Field(Inner(), description="Inner.")
    count: int = Field(1, ge=1, lt=9, description="Count.")
    short: str = Field("a", min_length=1, max_length=3, description="Short.")


LINES = {line.name: line for line in describe_options(Shown)}


@pytest.mark.parametrize(
    ("name", "type_", "default"),
    [
        ("needed", "int", "required"),
        ("bounded", "float > 0, ≤ 1", "0.5"),
        ("maybe", "str | null", "null"),
        ("chosen", "a | b", "a"),
        ("words", "list[str]", "[x, y]"),
        ("made", "dict[str, int]", "computed"),
        ("flag", "bool", "true"),
        ("mode", "fast | slow", "slow"),
        ("pair", "tuple[int, …]", "[1, 2]"),
        ("anything", "any", "null"),
        ("size", r"str matching ^\d+GB$", "1GB"),
        ("inner", "Inner", "defaults below"),
        ("inner.depth", "int > 0", "3"),
        ("count", "int ≥ 1, < 9", "1"),
        ("short", "str length ≥ 1, length ≤ 3", "a"),
    ],
)
def test_a_line(name, type_, default):
    assert (LINES[name].type, LINES[name].default) == (type_, default)


class Tree(Options):
    below: list[Tree] | None = Field(None, description="Trees.")
    inner: Inner = Field(Inner(), description="Inner.")


def test_a_model_inside_itself_is_described_once():
    assert [line.name for line in describe_options(Tree)] == ["below", "inner", "inner.depth"]


def test_every_field_is_there_in_order_and_descriptions_are_one_line():
    assert [name for name in LINES if name != "inner.depth"] == list(Shown.model_fields)
    assert list(LINES).index("inner.depth") == list(LINES).index("inner") + 1
    assert LINES["maybe"].description == "Two lines."
