"""The built-in data formats: rows to samples without loss, and what each bad row gets."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core import ChatSample, PreferenceSample, RowError, TextSample
from bumblecore_core.testing import check_data_format
from bumblecore_plugins.data_formats import bumble_data_formats

RECORDS = {record.name: record for record in bumble_data_formats()}


def convert(name, row, **options):
    record = RECORDS[name]
    before = copy.deepcopy(row)
    sample = record.build(options=record.options(**options)).convert(row=row)
    assert row == before, "a format must not change the row"
    return sample


def problem(name, row, **options):
    with pytest.raises(RowError) as caught:
        convert(name, row, **options)
    return caught.value.problem


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


def calls(*pairs):
    return [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in pairs]


# -- which format a row is of -----------------------------------------------------------------------------------------

ROWS_OF = {
    ("text", "text"): [{"text": "a"}, {"text": None, "meta": {}}],
    ("alpaca", "chat"): [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "", "output": "b", "system": "s", "history": []},
    ],
    ("alpaca", "preference"): [{"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}],
    ("sharegpt", "chat"): [
        {"conversations": [{"from": "human", "value": "a"}]},
        {"conversations": [], "tools": "[]", "system": ""},
        {"conversations": [], "chosen": None, "rejected": None},
    ],
    ("sharegpt", "preference"): [{"conversations": [], "chosen": {}, "rejected": {}}],
    ("openai", "chat"): [{"messages": [{"role": "user", "content": "a"}]}, {"messages": None, "tools": []}],
    ("openai", "preference"): [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": [], "chosen": {}, "rejected": {}},
        {"chosen": [], "rejected": []},
    ],
}


@pytest.mark.parametrize(("name", "kind"), ROWS_OF)
def test_each_row_is_of_exactly_one_format(name, kind):
    for row in ROWS_OF[name, kind]:
        found = {record.name: record.detect(row) for record in RECORDS.values()}
        assert {name: kind for name, kind in found.items() if kind is not None} == {name: kind}


@pytest.mark.parametrize("row", [{}, {"q": "a"}, {"instruction": "a"}, {"output": "b"}, {"prompt": "a"}])
def test_other_rows_are_of_none(row):
    assert [record.detect(row) for record in RECORDS.values()] == [None] * 4


# -- nothing is lost --------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=12)
FULL = st.text(min_size=1, max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
NAMES = st.text("abc_", min_size=1, max_size=6)
ARGUMENTS = st.dictionaries(TEXT, JSON, max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3).map(lambda pairs: calls(*pairs))
TOOLS = (
    st.lists(
        st.fixed_dictionaries({"name": NAMES, "description": TEXT, "parameters": ARGUMENTS}), min_size=1, max_size=2
    ).map(lambda tools: tuple({"type": "function", "function": tool} for tool in tools))
    | st.none()
)


@st.composite
def tool_rounds(draw):
    """The assistant's calls and the tools' answers."""
    made = draw(CALLS)
    answers = draw(st.lists(TEXT, min_size=1, max_size=2))
    return [
        {"role": "assistant", "content": "", "tool_calls": made},
        *({"role": "tool", "content": text} for text in answers),
    ]


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(FULL)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(TEXT)))
        for _ in range(draw(st.integers(0, 2))):
            messages += draw(tool_rounds())
        messages.append(reply(draw(TEXT)))
    return tuple(messages)


def to_sharegpt(messages, aliases):
    """The turns of messages, each call a turn of its own or all of them in one."""
    turns = []
    for message in messages:
        if "tool_calls" in message:
            made = [call["function"] for call in message["tool_calls"]]
            values = [json.dumps(made)] if aliases else [json.dumps(call) for call in made]
            turns += [{"from": "function_call", "value": value} for value in values]
        else:
            role = {"user": "human", "assistant": "gpt", "tool": "tool" if aliases else "observation"}
            turns.append({"from": role.get(message["role"], message["role"]), "value": message["content"]})
    return turns


PROPERTY = settings(max_examples=60, deadline=None)


@PROPERTY
@given(messages=conversations(), tools=TOOLS, aliases=st.booleans(), as_text=st.booleans(), apart=st.booleans())
def test_sharegpt_keeps_everything(messages, tools, aliases, as_text, apart):
    row = {"conversations": to_sharegpt(messages, aliases)}
    if tools is not None:
        bare = [tool["function"] for tool in tools] if aliases else list(tools)
        row["tools"] = json.dumps(bare) if as_text else bare
    if apart and messages[0]["role"] == "system":
        row["conversations"].pop(0)
        row["system"] = messages[0]["content"]
    assert convert("sharegpt", row) == ChatSample(messages=messages, tools=tools)


@PROPERTY
@given(messages=conversations(), tools=TOOLS, as_text=st.booleans(), parts=st.booleans(), ids=st.booleans())
def test_openai_keeps_everything(messages, tools, as_text, parts, ids):
    expected = copy.deepcopy(messages)
    rows = copy.deepcopy(list(messages))
    for given_message, message in zip(rows, expected, strict=True):
        if "tool_calls" in message:
            given_message["content"] = None
            for index, (given_call, call) in enumerate(
                zip(given_message["tool_calls"], message["tool_calls"], strict=True)
            ):
                if as_text:
                    given_call["function"]["arguments"] = json.dumps(given_call["function"]["arguments"])
                if ids:
                    given_call["id"] = call["id"] = f"call_{index}"
        elif parts:
            half = len(message["content"]) // 2
            pieces = [message["content"][:half], message["content"][half:]]
            given_message["content"] = [{"type": "text", "text": piece} for piece in pieces]
        if message["role"] == "tool" and ids:
            given_message["tool_call_id"] = message["tool_call_id"] = "call_0"
        if message["role"] == "assistant" and parts:
            given_message["reasoning_content"] = message["reasoning_content"] = "because"
    row = {"messages": rows, "tools": None if tools is None else list(tools)}
    assert convert("openai", row) == ChatSample(messages=expected, tools=tools)


@PROPERTY
@given(
    system=TEXT, history=st.lists(st.tuples(TEXT, TEXT), max_size=2), instruction=FULL, extra=TEXT | st.none(), out=TEXT
)
def test_alpaca_keeps_everything(system, history, instruction, extra, out):
    row = {"instruction": instruction, "input": extra, "output": out, "system": system}
    row["history"] = [list(pair) for pair in history] if history else None
    expected = [{"role": "system", "content": system}] if system else []
    for question, answer in history:
        expected += [user(question), reply(answer)]
    expected += [user(instruction + "\n" + extra if extra else instruction), reply(out)]
    assert convert("alpaca", row) == ChatSample(messages=tuple(expected))


@given(text=st.text())
def test_text_is_unchanged(text):
    assert convert("text", {"text": text}) == TextSample(text=text)
    assert convert("text", {"body": text}, field="body") == TextSample(text=text)


# -- variants ---------------------------------------------------------------------------------------------------------


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
            {**reply("b"), "weight": 1, "tool_calls": None},
        ]
    }
    assert convert("openai", row).messages == (
        {"role": "system", "content": "s"},
        user("a"),
        {"role": "assistant", "content": "", "tool_calls": calls(("f", {}))},
        {"role": "tool", "content": "1", "name": "f"},
        reply("b"),
    )


@pytest.mark.parametrize("tools", ["", "[]", [], None])
def test_no_tools(tools):
    row = {"conversations": to_sharegpt([user("a"), reply("b")], False), "tools": tools}
    assert convert("sharegpt", row).tools is None


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
                    {"role": "tool", "content": "the result"},
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
    ],
}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_conformance(name):
    record = RECORDS[name]
    check_data_format(record.build(options=record.options()), GOOD[name], record=record)


# -- bad rows ---------------------------------------------------------------------------------------------------------

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
