"""Bad rows: each gets its code and the path of what is wrong, and its text stays unsaid."""

from __future__ import annotations

import pytest
from format_rows import RECORDS, calls, convert, problem, reply, user
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core import ChatSample, PreferenceSample, RowError, TextSample

HUMAN = {"from": "human", "value": "secret"}
GPT = {"from": "gpt", "value": "secret"}


def turns(*items, **more):
    return {"conversations": list(items), **more}


def messages(*items, **more):
    return {"messages": list(items), **more}


def call_turn(value):
    return turns(HUMAN, {"from": "function_call", "value": value}, GPT)


def call_message(call):
    return messages(user("secret"), {"role": "assistant", "tool_calls": [calls(("f", {}))[0], call]})


BAD = [
    # 7: a missing field
    ("BC007", "text", "text", {"body": "secret"}),
    ("BC007", "output", "alpaca", {"instruction": "secret", "answer": "secret"}),
    ("BC007", "instruction", "alpaca", {"output": "secret"}),
    ("BC007", "conversations", "sharegpt", {"turns": []}),
    ("BC007", "conversations[1].value", "sharegpt", turns(HUMAN, {"from": "gpt", "text": "secret"})),
    ("BC007", "conversations[0].from", "sharegpt", turns({"value": "secret"})),
    ("BC007", "messages", "openai", {"tools": []}),
    ("BC007", "messages[1].content", "openai", messages(user("secret"), {"role": "assistant"})),
    ("BC007", "prompt", "openai", {"chosen": "secret", "rejected": "other"}),
    ("BC007", "rejected", "openai", {"prompt": "secret", "chosen": "other"}),
    ("BC007", "chosen", "openai", {"prompt": "secret", "rejected": "other"}),
    ("BC011", "rejected", "openai", {"prompt": "secret", "chosen": "other", "rejected": None}),
    # 11: a wrong type
    ("BC011", "text", "text", {"text": None}),
    ("BC011", "output", "alpaca", {"instruction": "secret", "output": ["secret"]}),
    ("BC011", "input", "alpaca", {"instruction": "secret", "output": "secret", "input": 3}),
    ("BC011", "history[0]", "alpaca", {"instruction": "a", "output": "b", "history": [["secret"]]}),
    ("BC011", "history[1][0]", "alpaca", {"instruction": "a", "output": "b", "history": [["a", "b"], [None, "b"]]}),
    ("BC011", "conversations", "sharegpt", {"conversations": "secret"}),
    ("BC011", "conversations[1]", "sharegpt", turns(HUMAN, "secret")),
    ("BC011", "conversations[1].value", "sharegpt", turns(HUMAN, {"from": "gpt", "value": {"a": "secret"}})),
    ("BC011", "system", "sharegpt", turns(HUMAN, GPT, system=["secret"])),
    ("BC011", "messages[1].content", "openai", messages(user("a"), {"role": "assistant", "content": None})),
    ("BC011", "messages[0].content", "openai", messages({"role": "user", "content": 1.5})),
    ("BC011", "messages[0].role", "openai", messages({"role": None, "content": "secret"})),
    (
        "BC011",
        "messages[0].content[1].type",
        "openai",
        messages(user([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "secret"}}])),
    ),
    ("BC011", "messages[1].weight", "openai", messages(user("a"), {**reply("secret"), "weight": 0})),
    ("BC011", "chosen", "openai", {"prompt": "a", "chosen": 1, "rejected": "secret"}),
    # 12: an unknown role
    ("BC012", "conversations[0].from", "sharegpt", turns({"from": "bot", "value": "secret"})),
    ("BC012", "messages[0].role", "openai", messages({"role": "human", "content": "secret"})),
    # 13: disorder
    ("BC013", "conversations[1]", "sharegpt", turns(HUMAN, HUMAN, GPT)),
    ("BC013", "conversations[2]", "sharegpt", turns(HUMAN, GPT, GPT)),
    ("BC013", "conversations[0]", "sharegpt", turns(GPT, HUMAN, GPT)),
    ("BC013", "conversations[1]", "sharegpt", turns({"from": "system", "value": "s"}, GPT)),
    ("BC013", "conversations[2]", "sharegpt", call_turn('{"name": "f", "arguments": {}}')),
    ("BC013", "conversations[1]", "sharegpt", turns(HUMAN, {"from": "observation", "value": "secret"}, GPT)),
    ("BC013", "messages[2]", "openai", messages(user("a"), reply("b"), {"role": "tool", "content": "secret"})),
    ("BC013", "prompt", "openai", {"prompt": [user("a"), reply("b")], "chosen": "secret", "rejected": "c"}),
    ("BC013", "conversations", "sharegpt", turns(HUMAN, GPT, chosen=GPT, rejected=GPT)),
    ("BC013", "rejected[1]", "openai", {"prompt": "a", "chosen": "b", "rejected": [reply("c"), reply("d")]}),
    # 14: no reply at the end
    ("BC014", "conversations", "sharegpt", turns(HUMAN, GPT, HUMAN)),
    ("BC014", "conversations", "sharegpt", turns()),
    ("BC014", "messages", "openai", messages(user("secret"))),
    # 16: a system message that is not first
    ("BC016", "messages[2]", "openai", messages(user("a"), reply("b"), {"role": "system", "content": "secret"})),
    ("BC016", "conversations[1]", "sharegpt", turns(HUMAN, {"from": "system", "value": "secret"}, GPT)),
    ("BC016", "conversations[0]", "sharegpt", turns({"from": "system", "value": "s"}, HUMAN, GPT, system="secret")),
    # 18: prompts that differ
    (
        "BC018",
        "rejected[0]",
        "openai",
        {"chosen": [user("secret"), reply("b")], "rejected": [user("other"), reply("c")]},
    ),
    (
        "BC018",
        "rejected[1]",
        "openai",
        {"chosen": [user("a"), reply("b"), user("secret"), reply("c")], "rejected": [user("a"), reply("b")]},
    ),
    (
        "BC018",
        "prompt",
        "openai",
        {"prompt": "other", "chosen": [user("secret"), reply("b")], "rejected": [user("secret"), reply("c")]},
    ),
    # 19: malformed tool calls
    ("BC019", "conversations[1].value", "sharegpt", call_turn("secret")),
    ("BC019", "conversations[1].value", "sharegpt", call_turn('{"arguments": {}}')),
    ("BC019", "conversations[1].value", "sharegpt", call_turn('{"name": "f"}')),
    ("BC019", "conversations[1].value", "sharegpt", call_turn("[]")),
    ("BC019", "conversations[1].value[1]", "sharegpt", call_turn('[{"name": "f", "arguments": {}}, 1]')),
    ("BC019", "conversations[1].value.arguments", "sharegpt", call_turn('{"name": "f", "arguments": [1]}')),
    ("BC019", "conversations[1].value", "sharegpt", call_turn('{"name": "f", "arguments": {"a": NaN}}')),
    ("BC019", "messages[1].tool_calls[1]", "openai", call_message({"id": "secret"})),
    ("BC019", "messages[1].tool_calls[1].arguments", "openai", call_message({"name": "f", "arguments": "{secret"})),
    ("BC019", "tools", "sharegpt", turns(HUMAN, GPT, tools="{secret")),
    ("BC019", "tools", "sharegpt", turns(HUMAN, GPT, tools=3)),
    ("BC019", "tools[0]", "openai", messages(user("a"), reply("b"), tools=[{"type": "function", "function": 1}])),
    ("BC019", "tools[1]", "openai", messages(user("a"), reply("b"), tools=[{"name": "f"}, 3])),
]


@pytest.mark.parametrize(("code", "field", "name", "row"), BAD)
def test_bad_rows(code, field, name, row):
    found = problem(name, row)
    assert (found.code, found.field) == (code, field)
    assert "secret" not in str(found)


def test_messages_say_what_was_found_and_what_is_allowed():
    assert "keys found: instruction, answer" in problem("alpaca", {"instruction": "a", "answer": "b"}).problem
    assert "null where text is needed" in problem("text", {"text": None}).problem
    assert "the role is not known" in problem("sharegpt", turns({"from": "a text, not a role", "value": "a"})).problem
    allowed = problem("sharegpt", turns({"from": "bot", "value": "a"})).problem
    assert "'bot'" in allowed
    assert "human" in allowed
    assert "turn 1 is user where assistant is expected" in problem("sharegpt", turns(HUMAN, HUMAN)).problem
    assert "after a tool call" in problem("sharegpt", call_turn('{"name": "f", "arguments": {}}')).problem
    assert "turn 1, not first" in problem("sharegpt", turns(HUMAN, {"from": "system", "value": "s"})).problem


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(RECORDS)), data=st.data())
def test_any_row_gives_a_sample_or_a_row_error(name, data):
    keys = ["text", "instruction", "output", "conversations", "messages", "from", "value", "role", "content", "chosen"]
    keys += ["rejected", "prompt", "tools", "system", "history", "tool_calls", "function", "name", "arguments"]
    leaves = (
        st.none() | st.booleans() | st.integers() | st.sampled_from(["", "a", "human", "user", "{}", "function_call"])
    )
    value = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=4),
        max_leaves=12,
    )
    row = data.draw(st.dictionaries(st.sampled_from(keys), value, max_size=5))
    for record in RECORDS.values():
        assert record.detect(row) in (None, "text", "chat", "preference")
    try:
        sample = convert(name, row)
    except RowError:
        return
    assert isinstance(sample, (TextSample, ChatSample, PreferenceSample))
