"""Messages of every dialect: roles, weights, reasoning, parts, results, and what is merged."""

from __future__ import annotations

import json

import pytest
from format_rows import calls, convert, problem, reply, tool, user

CALL = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
HUMAN = {"from": "human", "value": "a"}
GPT = {"from": "gpt", "value": "b"}


def chat(*messages, **more):
    return convert("openai", {"messages": list(messages)}, "chat", **more).messages


def conversation(*turns, **more):
    return convert("sharegpt", {"conversations": list(turns)}, "chat", **more).messages


@pytest.mark.parametrize(
    ("said", "role"),
    [
        *(("developer", "system"), ("human", "user"), ("Human", "user"), ("USER", "user")),
        *((name, "assistant") for name in ("gpt", "model", "bot", "chatbot", "ai", "Assistant")),
        *((name, "tool") for name in ("ipython", "function", "observation", "function_response", "tool_response")),
    ],
)
def test_roles_of_every_dialect(said, role):
    before = {"system": [], "user": [], "assistant": [user("a")], "tool": [user("a"), reply("b")]}[role]
    after = {"system": [user("a"), reply("b")], "user": [reply("b")], "assistant": [], "tool": [reply("b")]}[role]
    assert chat(*before, {"role": said, "content": "c"}, *after)[len(before)] == {"role": role, "content": "c"}
    turns = [{"from": turn["role"], "value": turn["content"]} for turn in before + after]
    turns.insert(len(before), {"from": said, "value": "c"})
    assert conversation(*turns)[len(before)] == {"role": role, "content": "c"}


def test_further_names_of_roles():
    roles = {"character": "assistant", "player": "user", "human": "system", "action": "function_call"}
    turns = [("human", "s"), ("player", "a"), ("character", "b"), ("player", "c"), ("action", CALL["value"])]
    expected = (
        {"role": "system", "content": "s"},
        *(user("a"), reply("b"), user("c")),
        reply("", tool_calls=calls(("f", {"x": 1}))),
    )
    assert conversation(*({"from": role, "value": text} for role, text in turns), roles=roles) == expected
    assert chat(*({"role": role, "content": text} for role, text in turns), roles=roles) == expected
    assert "character" in problem("openai", {"messages": [{"role": "x", "content": ""}]}, roles=roles).problem


@pytest.mark.parametrize(
    ("flags", "weight"),
    [
        *(({name: False}, 0.0) for name in ("train", "training", "trainable", "loss", "weight", "loss_weight")),
        *(({name: 0}, 0.0) for name in ("train", "loss", "weight", "loss_weight")),
        *(({name: 0.25}, 0.25) for name in ("weight", "loss_weight")),
        ({"weight": 2}, 2.0),
        ({"weight": 2, "loss_weight": 0.5}, 0.5),
        ({"train": True, "weight": 0.5}, 0.5),
        ({"train": False, "weight": 1.0}, 0.0),
        *(({name: True}, None) for name in ("train", "training", "trainable", "loss", "weight")),
        *(({name: 1}, None) for name in ("train", "weight", "loss_weight")),
        ({"train": None, "weight": None}, None),
    ],
)
def test_flags_of_messages(flags, weight):
    expected = reply("b") if weight is None else reply("b", weight=weight)
    for found in (chat(user("a"), reply("b", **flags)), conversation(HUMAN, {**GPT, **flags})):
        assert found == (user("a"), expected)
        assert all(type(message.get("weight", 1.0)) is float for message in found)
    pair = convert("openai", {"prompt": "a", "chosen": reply("b", **flags), "rejected": "c"}, "preference")
    assert pair.chosen == (expected,)


def test_flags_of_other_roles_train_nothing():
    row = {"messages": [{**user("a"), "loss_weight": 0.0, "train": True}, reply("b")]}
    sample = convert("openai", row)
    assert sample.messages == (user("a"), reply("b"))
    assert sample.warnings == ("BC083 the message key 'train' is read on assistant messages only",)
    assert problem("openai", {"messages": [{**user("a"), "train": "no"}, reply("b")]}).field == "messages[0].train"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(name):
    expected = (user("a"), reply("b", reasoning_content="because"))
    assert chat(user("a"), reply("b", **{name: "because"})) == expected
    assert conversation(HUMAN, {**GPT, name: "because"}) == expected
    assert chat(user("a"), reply("b", **{name: ""})) == (user("a"), reply("b"))
    assert chat(user("a"), reply("b", **{"reasoning": "because", name: "because"})) == expected
    call = conversation(HUMAN, {**CALL, name: "because"})[1]
    assert call == reply("", tool_calls=calls(("f", {"x": 1})), reasoning_content="because")


def test_parts_of_an_assistants_message():
    parts = [
        {"type": "reasoning", "value": "because "},
        {"type": "thinking", "thinking": "of it"},
        {"type": "text", "text": "b", "value": None, "image_url": None},
        {"type": "output_text", "value": "c"},
        {"type": "tool_call", "value": CALL["value"]},
    ]
    assert chat(user([{"type": "input_text", "text": "a"}]), reply(parts)) == (
        user("a"),
        reply("bc", tool_calls=calls(("f", {"x": 1})), reasoning_content="because of it"),
    )
    for part in parts[:2] + parts[-1:]:
        assert problem("openai", {"messages": [user([part]), reply("b")]}).field == "messages[0].content[0].type"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"temp": 4, "in": "Zürich", "wind": None}, '{"temp": 4, "in": "Zürich", "wind": null}'),
        ([{"temp": 4}, 5], '[{"temp": 4}, 5]'),
        (4, "4"),
        ([{"type": "text", "text": "4"}, {"type": "text", "text": "5"}], "45"),
        ([{"type": ["text"]}], '[{"type": ["text"]}]'),
        ("4", "4"),
        ([], ""),
    ],
)
def test_results_that_are_no_text_are_json(content, text):
    call = reply("", tool_calls=calls(("f", {})))
    messages = chat(user("a"), call, tool(content, tool_call_id=7), reply("b"))
    assert messages[2] == tool(text, tool_call_id="7")
    turns = conversation(HUMAN, CALL, {"from": "observation", "value": content}, GPT)
    assert turns[2] == tool(text)


def test_a_result_may_follow_an_assistants_text():
    observation = {"from": "observation", "value": "4"}
    assert conversation(HUMAN, GPT, observation, GPT) == (user("a"), reply("b"), tool("4"), reply("b"))


def test_calls_with_a_turn_of_their_own_belong_to_the_turn_before():
    made = calls(("f", {"x": 1}))
    assert conversation(HUMAN, GPT, CALL) == (user("a"), reply("b", tool_calls=made))
    assert conversation(HUMAN, GPT, CALL, CALL) == (user("a"), reply("b", tool_calls=made * 2))
    assert chat(user("a"), reply("b"), reply(None, tool_calls=made)) == (user("a"), reply("b", tool_calls=made))
    assert problem("openai", {"messages": [user("a"), reply("b"), reply("c", tool_calls=made)]}).code == "BC013"
    row = {"conversations": [HUMAN, GPT, {**CALL, "train": False}]}
    assert problem("sharegpt", row).code == "BC013", "of different weight: one message has one weight"


def test_consecutive_turns_are_merged_if_asked_for():
    two = [user("a"), user("b"), reply("c", thinking="x"), reply("d"), reply("e", thinking="y")]
    found = problem("openai", {"messages": two})
    assert (found.code, found.field) == ("BC013", "messages[1]")
    assert "merge_consecutive: true" in found.fix
    assert chat(*two, merge_consecutive=True) == (user("a\n\nb"), reply("c\n\nd\n\ne", reasoning_content="x\n\ny"))
    assert conversation(HUMAN, HUMAN, GPT, merge_consecutive=True) == (user("a\n\na"), reply("b"))
    results = [user("a"), reply("", tool_calls=calls(("f", {}), ("f", {}))), tool("1"), tool("2"), reply("b")]
    assert chat(*results, merge_consecutive=True) == tuple(results)


def test_turns_that_differ_in_weight_or_name_stay_apart():
    for apart in ([reply("b"), reply("c", weight=0.5)], [reply("b", name="x"), reply("c", name="y")]):
        row = {"messages": [user("a"), *apart]}
        assert problem("openai", row, merge_consecutive=True).field == "messages[2]"


def test_a_conversation_may_begin_with_the_assistant_if_asked_for():
    system = {"role": "system", "content": "s"}
    for before in ([], [system]):
        row = {"messages": [*before, reply("x"), user("a"), reply("b")]}
        found = problem("openai", row)
        assert (found.code, found.field) == ("BC013", f"messages[{len(before)}]")
        assert "assistant_first: true" in found.fix
        assert chat(*row["messages"], assistant_first=True) == tuple(row["messages"])
    for other in (
        [tool("1"), reply("b")],
        [user("a"), reply("", tool_calls=calls(("f", {}))), reply("b", thinking="x")],
    ):
        found = problem("openai", {"messages": other})
        assert found.code == "BC013"
        assert "assistant_first" not in found.fix
    assert conversation(GPT, HUMAN, GPT, assistant_first=True)[0] == reply("b")
    assert problem("openai", {"messages": [tool("1"), reply("b")]}, assistant_first=True).code == "BC013"


def test_lists_that_are_held_as_json():
    messages = [user("a \U0001f41d"), reply("b")]
    assert "\\ud83d" in json.dumps(messages)
    assert convert("openai", {"messages": json.dumps(messages)}).messages == tuple(messages)
    messages = [user("a"), reply("b")]
    assert convert("sharegpt", {"conversations": json.dumps([HUMAN, GPT])}).messages == tuple(messages)
    row = {"instruction": "a", "output": "b", "history": '[["x", "y"]]'}
    assert convert("alpaca", row).messages == (user("x"), reply("y"), *messages)
    assert convert("openai", {"prompt": json.dumps(messages), "completion": "b"}).messages[0] == user(
        json.dumps(messages)
    ), "a prompt is text"


@pytest.mark.parametrize(
    ("name", "row", "reads"),
    [
        ("openai", {"messages": [user("a"), reply("b")]}, "chat"),
        ("openai", {"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ("openai", {"messages": [user("a"), reply("b")], "label": True}, "feedback"),
        ("sharegpt", {"conversations": [HUMAN, GPT]}, "chat"),
        ("alpaca", {"instruction": "a", "output": "b"}, "chat"),
        ("xlam", {"query": "a", "tools": "", "answers": ""}, "chat"),
    ],
)
def test_a_rows_variables_for_the_template(name, row, reads):
    wanted = {"enable_thinking": False, "documents": [{"a": None}, {"b": 1}]}
    for value in (wanted, json.dumps(wanted)):
        sample = convert(name, {**row, "chat_template_kwargs": value}, reads)
        assert sample.template_kwargs == wanted
        assert sample.warnings == ()
    for nothing in (None, {}, "", {"enable_thinking": None}):
        assert convert(name, {**row, "chat_template_kwargs": nothing}, reads).template_kwargs is None


def test_a_reply_that_begins_with_a_system_message_is_an_error():
    system = {"role": "system", "content": "s"}
    found = problem("openai", {"prompt": "a", "completion": [system, reply("b")]})
    assert (found.code, found.field) == ("BC016", "completion[0]")
