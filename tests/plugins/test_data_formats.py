"""Which format a row is of, and the variants that each format reads."""

from __future__ import annotations

import pytest
from format_rows import RECORDS, calls, convert, kinds, reply, to_sharegpt, tool, user

from bumblecore_core import ChatSample, PreferenceSample
from bumblecore_core.testing import check_data_format

ROWS_OF = {
    ("text", "text"): [{"text": "a"}, {"text": None, "meta": {}}],
    ("alpaca", "chat"): [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "", "output": "b", "system": "s", "history": []},
        {"instruction": "a", "output": None, "chosen": "b"},
    ],
    ("alpaca", "preference"): [
        {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"},
        {"instruction": "a", "output": None, "chosen": "b", "rejected": "c"},
    ],
    ("sharegpt", "chat"): [
        {"conversations": [{"from": "human", "value": "a"}]},
        {"conversations": [], "tools": "[]", "system": ""},
        {"conversations": [], "chosen": None, "rejected": None},
    ],
    ("sharegpt", "preference"): [{"conversations": [], "chosen": {}, "rejected": {}}],
    ("openai", "chat"): [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": None, "tools": []},
        {"messages": [{"role": "user", "content": "a"}], "chosen": "b"},
    ],
    ("openai", "chat", "completion"): [
        {"prompt": "a", "completion": "b"},
        {"prompt": [], "completion": [], "label": ""},
    ],
    ("openai", "preference"): [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": [], "chosen": {}, "rejected": {}},
        {"chosen": [], "rejected": []},
        {"chosen_messages": [], "rejected_messages": []},
        {"prompt": "a", "completion": None, "chosen": "b", "rejected": "c"},
    ],
    ("xlam", "chat"): [{"query": "a", "tools": "[]", "answers": "[]"}],
}


@pytest.mark.parametrize("schema", ROWS_OF)
def test_each_row_is_of_exactly_one_format_and_kind(schema):
    name, kind, *_ = schema
    for row in ROWS_OF[schema]:
        assert kinds(row) == {name: (kind,)}, row


@pytest.mark.parametrize(
    "row",
    [{}, {"q": "a"}, {"instruction": "a"}, {"output": "b"}, {"prompt": "a"}, {"query": "a", "answers": ["b"]}],
)
def test_other_rows_are_of_none(row):
    assert kinds(row) == {}


def test_field_names_are_options():
    row = {"q": "a", "context": "b", "a": "c"}
    expected = ChatSample(messages=(user("a\nb"), reply("c")))
    assert convert("alpaca", row, instruction="q", input="context", output="a") == expected
    row = {"dialog": [{"who": "human", "says": "a"}, {"who": "gpt", "says": "c"}]}
    expected = ChatSample(messages=(user("a"), reply("c")))
    assert convert("sharegpt", row, conversations="dialog", role="who", content="says") == expected
    assert convert("openai", {"chat": [user("a"), reply("c")]}, messages="chat") == expected


def test_alpaca_without_an_instruction_text_is_its_input():
    row = {"instruction": "", "input": "a", "output": "b"}
    assert convert("alpaca", row) == ChatSample(messages=(user("a"), reply("b")))


def test_sharegpt_reads_turns_with_role_and_content():
    row = {"conversations": [user("a"), reply("b")]}
    assert convert("sharegpt", row) == ChatSample(messages=(user("a"), reply("b")))


def test_openai_reads_the_old_names():
    row = {
        "messages": [
            {"role": "developer", "content": "s"},
            user("a"),
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
            {"role": "function", "name": "f", "content": "1"},
            reply("b", weight=1, tool_calls=None),
        ]
    }
    assert convert("openai", row).messages == (
        {"role": "system", "content": "s"},
        user("a"),
        {"role": "assistant", "content": "", "tool_calls": calls(("f", {}))},
        tool("1", name="f"),
        reply("b"),
    )


PAIR = PreferenceSample(prompt=(user("a"),), chosen=(reply("b"),), rejected=(reply("c"),))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca", {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": [{"from": "gpt", "value": "c"}],
            },
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}], "chosen": "b", "rejected": "c"}),
        ("openai", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("openai", {"prompt": [user("a")], "chosen": [reply("b")], "rejected": reply("c")}),
        ("openai", {"messages": [user("a")], "chosen": reply("b"), "rejected": reply("c")}),
        ("openai", {"chosen": [user("a"), reply("b")], "rejected": [user("a"), reply("c")]}),
        ("openai", {"prompt": "a", "chosen": [user("a"), reply("b")], "rejected": [user("a"), reply("c")]}),
    ],
)
def test_preferences(name, row):
    assert convert(name, row) == PAIR


GOOD = {
    "text": [{"text": "a good text"}],
    "alpaca": [
        {"instruction": "the task", "input": "its input", "output": "the reply", "history": [["before", "answer"]]},
        {"instruction": "the task", "chosen": "the better reply", "rejected": "the worse reply"},
    ],
    "sharegpt": [
        {
            "conversations": to_sharegpt(
                [
                    user("the question"),
                    {"role": "assistant", "content": "", "tool_calls": calls(("look_up", {"word": "whatever"}))},
                    tool("the result"),
                    reply("the reply"),
                ],
                False,
            ),
            "system": "the system message",
            "tools": [{"name": "look_up", "description": "Looks a word up."}],
        }
    ],
    "openai": [
        {"messages": [user("the question"), reply("the reply")]},
        {"prompt": "the question", "chosen": "the better reply", "rejected": [reply("the worse reply")]},
        {"prompt": "the question", "completion": "the reply", "label": True},
        {
            "prompt": "the question",
            "messages": [user("the question"), reply("the better reply")],
            "chosen": [user("the question"), reply("the better reply")],
            "rejected": [user("the question"), reply("the worse reply")],
        },
    ],
    "xlam": [
        {
            "query": "the question",
            "tools": '[{"name": "look_up", "description": "Looks a word up."}]',
            "answers": '[{"name": "look_up", "arguments": {"word": "whatever"}}]',
        }
    ],
}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_conformance(name):
    record = RECORDS[name]
    check_data_format(record.build(options=record.options()), GOOD[name], record=record)
