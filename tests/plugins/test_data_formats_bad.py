"""Bad rows: each gets its code and the path of what is wrong, and its text stays unsaid."""

from __future__ import annotations

import pytest
from format_rows import calls, problem, reply, tool, user

HUMAN = {"from": "human", "value": "secret"}
GPT = {"from": "gpt", "value": "secret"}
SYSTEM = {"role": "system", "content": "be kind"}


def turns(*items, **more):
    return {"conversations": list(items), **more}


def messages(*items, **more):
    return {"messages": list(items), **more}


def call_turn(value):
    return turns(HUMAN, {"from": "function_call", "value": value}, GPT)


def call_message(call, **more):
    first = {**calls(("f", {}))[0], **more}
    return messages(user("secret"), {"role": "assistant", "tool_calls": [first, call]})


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
        messages(user([{"type": "text", "text": "a"}, {"type": "file", "file": {"url": "secret"}}])),
    ),
    ("BC011", "messages[1].weight", "openai", messages(user("a"), reply("secret", weight=-1))),
    ("BC011", "messages[1].weight", "openai", messages(user("a"), reply("secret", weight=float("nan")))),
    ("BC011", "messages[1].train", "openai", messages(user("a"), reply("secret", train="secret"))),
    ("BC011", "conversations[1].loss", "sharegpt", turns(HUMAN, {**GPT, "loss": 0.5})),
    ("BC011", "messages[1].thinking", "openai", messages(user("a"), reply("b", reasoning="secret", thinking="other"))),
    ("BC011", "messages[1].reasoning", "openai", messages(user("a"), reply("b", reasoning=["secret"]))),
    ("BC011", "messages", "openai", {"messages": "secret"}),
    ("BC011", "messages", "openai", {"messages": '[{"role": "secret'}),
    ("BC011", "chat_template_kwargs", "openai", messages(user("a"), reply("b"), chat_template_kwargs=["secret"])),
    ("BC011", "chat_template_kwargs", "sharegpt", turns(HUMAN, GPT, chat_template_kwargs="secret")),
    ("BC011", "chosen", "openai", {"prompt": "a", "chosen": 1, "rejected": "secret"}),
    # 12: an unknown role
    ("BC012", "conversations[0].from", "sharegpt", turns({"from": "narrator", "value": "secret"})),
    ("BC012", "messages[0].role", "openai", messages({"role": "narrator", "content": "secret"})),
    # 13: disorder
    ("BC013", "conversations[1]", "sharegpt", turns(HUMAN, HUMAN, GPT)),
    ("BC013", "conversations[2]", "sharegpt", turns(HUMAN, GPT, GPT)),
    ("BC013", "conversations[0]", "sharegpt", turns(GPT, HUMAN, GPT)),
    ("BC013", "conversations[1]", "sharegpt", turns({"from": "system", "value": "s"}, GPT)),
    ("BC013", "conversations[2]", "sharegpt", call_turn('{"name": "f", "arguments": {}}')),
    ("BC013", "conversations[1]", "sharegpt", turns(HUMAN, {"from": "observation", "value": "secret"}, GPT)),
    ("BC013", "messages[3]", "openai", messages(user("a"), reply("b"), tool("secret"), user("secret"))),
    ("BC013", "prompt", "openai", {"prompt": [user("a"), reply("b")], "chosen": "secret", "rejected": "c"}),
    ("BC013", "conversations", "sharegpt", turns(HUMAN, GPT, chosen=GPT, rejected=GPT)),
    ("BC007", "prompt", "openai", {"chosen": [user("secret"), reply("b")], "rejected": reply("c")}),
    ("BC013", "chosen[0]", "openai", {"prompt": "a", "chosen": [user("secret"), reply("b")], "rejected": "c"}),
    ("BC013", "rejected[1]", "openai", {"prompt": "a", "chosen": "b", "rejected": [reply("c"), reply("d")]}),
    # 14: no reply at the end
    ("BC014", "conversations", "sharegpt", turns(HUMAN, GPT, HUMAN)),
    ("BC014", "conversations", "sharegpt", turns()),
    ("BC014", "messages", "openai", messages(user("secret"))),
    ("BC014", "messages", "openai", messages(user("a"), reply("b"), tool("secret"))),
    # 16: a system message that is not first
    ("BC016", "messages[2]", "openai", messages(user("a"), reply("b"), {"role": "system", "content": "secret"})),
    ("BC016", "conversations[1]", "sharegpt", turns(HUMAN, {"from": "system", "value": "secret"}, GPT)),
    ("BC016", "conversations[0]", "sharegpt", turns({"from": "system", "value": "s"}, HUMAN, GPT, system="secret")),
    ("BC016", "prompt[0]", "openai", {"prompt": [SYSTEM, user("a")], "completion": "b", "system": "secret"}),
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
    ("BC019", "messages[1].tool_calls[1]", "openai", call_message({"function": "secret", "arguments": {}})),
    ("BC019", "messages[1].tool_calls[1]", "openai", call_message({"name": "", "arguments": "secret"})),
    ("BC019", "messages[1].tool_calls[1]", "openai", call_message({"name": ["secret"], "arguments": {}})),
    ("BC019", "messages[1].tool_calls[0].id", "openai", call_message(None, id=["secret"])),
    ("BC019", "answers", "xlam", {"query": "a", "tools": "", "answers": "secret"}),
    # 20: characters that only the JSON in a text holds
    ("BC020", "messages", "openai", {"messages": '[{"role": "user", "content": "secret \\u0000"}]'}),
    ("BC020", "conversations[1].value", "sharegpt", call_turn('{"name": "f", "arguments": {"a": "secret \\ud800"}}')),
    ("BC020", "tools", "sharegpt", turns(HUMAN, GPT, tools='[{"name": "f", "tags": ["secret", "\\u0000"]}]')),
    ("BC020", "tools", "openai", messages(user("a"), reply("b"), tools='[{"name": "f", "\\udc00": 1}]')),
    # 84: what is not text
    ("BC084", "images", "openai", messages(user("a"), reply("secret"), images=["secret.jpg"])),
    ("BC084", "video", "sharegpt", turns(HUMAN, GPT, video="secret.mp4")),
    ("BC084", "image", "alpaca", {"instruction": "a", "output": "b", "image": {"bytes": "secret"}}),
    ("BC084", "messages[0].audio", "openai", messages({**user("a"), "audio": {"id": "secret"}}, reply("b"))),
    (
        "BC084",
        "messages[0].content[1].type",
        "openai",
        messages(user([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "secret"}}])),
    ),
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
    allowed = problem("sharegpt", turns({"from": "narrator", "value": "a"})).problem
    assert "'narrator'" in allowed
    assert "human" in allowed
    assert "turn 1 is user where assistant is expected" in problem("sharegpt", turns(HUMAN, HUMAN)).problem
    assert "after a tool call" in problem("sharegpt", call_turn('{"name": "f", "arguments": {}}')).problem
    assert "turn 1, not first" in problem("sharegpt", turns(HUMAN, {"from": "system", "value": "s"})).problem
