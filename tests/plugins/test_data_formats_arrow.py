"""Rows that have been in Arrow convert as the rows that went in, whatever their structs were padded with."""

from __future__ import annotations

import json

import pytest
from format_rows import calls, convert, reply, tool, user
from hypothesis import given, settings
from hypothesis import strategies as st

pyarrow = pytest.importorskip("pyarrow")

TEXT = st.text("abc", max_size=3)
# Arrow has one type for each name, and no objects without members.
ARGUMENTS = st.dictionaries(st.sampled_from(["i", "j"]), st.integers(0, 9), max_size=2).flatmap(
    lambda numbers: st.fixed_dictionaries(
        {name: st.just(number) for name, number in numbers.items()},
        optional={
            "text": TEXT,
            "list": st.lists(st.fixed_dictionaries({"x": st.integers(0, 9)}, optional={"y": TEXT}), max_size=2),
            "nested": st.fixed_dictionaries({"x": TEXT}, optional={"y": st.integers(0, 9)}),
        },
    )
)
CALLS = st.lists(st.tuples(st.sampled_from(["f", "g"]), ARGUMENTS), min_size=1, max_size=2).map(
    lambda pairs: calls(*pairs)
)
SCHEMA = st.fixed_dictionaries({"type": TEXT}, optional={"description": TEXT, "enum": st.lists(TEXT, max_size=2)})
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["f", "g"])},
        optional={
            "parameters": st.fixed_dictionaries(
                {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("abc"), SCHEMA, min_size=1)}
            )
        },
    ),
    max_size=2,
)


@st.composite
def rows(draw):
    messages = [user(draw(TEXT))]
    if draw(st.booleans()):
        messages.append(reply(draw(TEXT | st.none()), tool_calls=draw(CALLS)))
        messages.append(tool(draw(TEXT), **draw(st.fixed_dictionaries({}, optional={"tool_call_id": TEXT}))))
    optional = st.fixed_dictionaries({}, optional={"reasoning": TEXT, "weight": st.just(0.5)})
    messages.append(reply(draw(TEXT), **draw(optional)))
    # a table made from rows has the columns of the first
    variables = draw(st.none() | st.fixed_dictionaries({"enable_thinking": st.booleans()}, optional={"date": TEXT}))
    return {"messages": messages, "tools": draw(TOOLS), "chat_template_kwargs": variables}


@settings(max_examples=40, deadline=None)
@given(table=st.lists(rows(), min_size=1, max_size=3))
def test_a_table_keeps_every_row(table):
    for row, padded in zip(table, pyarrow.Table.from_pylist(table).to_pylist(), strict=True):
        expected = convert("openai", row, "chat")
        assert convert("openai", padded, "chat") == expected
        assert convert("openai", json.loads(json.dumps(padded)), "chat") == expected
