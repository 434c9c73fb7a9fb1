"""Tools and calls: what means none, code as arguments, and the nulls that Arrow and Parquet pad structs with."""

from __future__ import annotations

import json

import pytest
from format_rows import calls, convert, problem, reply, to_sharegpt, tool, user

CHAT = [user("a"), reply("b")]
TURNS = to_sharegpt(CHAT, False)
TOOL = {"name": "f", "description": "F.", "parameters": {"type": "object", "properties": {}}}
ROWS = [
    ("openai", {"messages": CHAT}),
    ("openai", {"prompt": "a", "completion": "b"}),
    ("sharegpt", {"conversations": TURNS}),
    ("alpaca", {"instruction": "a", "output": "b"}),
    ("xlam", {"query": "a", "answers": "[]"}),
]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_tools_of_every_format(name, row):
    expected = ({"type": "function", "function": TOOL},)
    for tools in ([TOOL], TOOL, list(expected), json.dumps([TOOL]), [json.dumps(TOOL)], [{}, TOOL]):
        assert convert(name, {**row, "tools": tools}, "chat").tools == expected
        assert convert(name, {**row, "functions": tools}, "chat").tools == expected
        assert convert(name, {**row, "tools": "", "functions": tools}, "chat").tools == expected


@pytest.mark.parametrize("tools", ["", " ", "[]", "{}", "null", "[{}]", "[null]", [], {}, [{}], None, [{"name": None}]])
@pytest.mark.parametrize(("name", "row"), ROWS)
def test_no_tools(name, row, tools):
    sample = convert(name, {**row, "tools": tools}, "chat")
    assert sample.tools is None
    assert sample.warnings == ()


def test_tools_and_functions_that_are_both_there():
    sample = convert("openai", {"messages": CHAT, "tools": [TOOL], "functions": [{"name": "g"}]})
    assert [tool["function"]["name"] for tool in sample.tools] == ["f"]
    assert sample.warnings == ("BC083 the row key 'functions' is not read",)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("print(1)\nprint({})", "print(1)\nprint({})"),
        ("x = [1]", "x = [1]"),
        ('"text"', '"text"'),
        ('{"x": null}', {"x": None}),
        (' {"x": [1]}', {"x": [1]}),
        ({"x": 1}, {"x": 1}),
        ("null", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_arguments(written, read):
    call = {"id": 7, "function": {"name": "f", "arguments": written}}
    expected = {**calls(("f", read))[0], "id": "7"}
    assert convert("openai", {"messages": [user("a"), reply("", tool_calls=[call])]}).messages[1] == reply(
        "", tool_calls=[expected]
    )
    assert convert("openai", {"messages": [user("a"), reply("", tool_calls=json.dumps([call]))]}).messages[1] == reply(
        "", tool_calls=[expected]
    )


@pytest.mark.parametrize("written", ['{"x": ', "[1", "[1]", '{"x": NaN}', [1], 3])
def test_broken_arguments(written):
    row = {"messages": [user("a"), reply("", tool_calls=[{"name": "f", "arguments": written}])]}
    found = problem("openai", row)
    assert (found.code, found.field) == ("BC019", "messages[1].tool_calls[0].arguments")


def test_two_forms_of_calls_in_one_message():
    message = reply(None, tool_calls=calls(("f", {})), function_call={"name": "g", "arguments": "{}"})
    sample = convert("openai", {"messages": [user("a"), message]})
    assert sample.messages[1] == reply("", tool_calls=calls(("f", {})))
    assert sample.warnings == ("BC083 the message key 'function_call' is not read",)


def parameters(**properties):
    return {"type": "object", "properties": properties}


NUMBER = {"type": "number", "minimum": 0}
TABLE = [
    {
        "messages": [
            user("a"),
            reply(None, tool_calls=calls(("move", {"x": 1, "by": {"mm": 2}}), ("stop", {}))),
            tool("done"),
            reply("b", reasoning="because"),
        ],
        "tools": [
            {"name": "move", "parameters": parameters(x=NUMBER, by=parameters(mm=NUMBER))},
            {"name": "stop"},
        ],
    },
    {
        "messages": [user("c"), reply(None, tool_calls=calls(("find", {"city": "Bern", "near": [{"km": 3}]})))],
        "tools": [{"name": "find", "parameters": parameters(city={"type": "string", "description": "A city."})}],
    },
    {"messages": [user("d"), reply("e")]},
]


def through_arrow(rows):
    pyarrow = pytest.importorskip("pyarrow")
    padded = pyarrow.Table.from_pylist(rows).to_pylist()
    assert padded != rows
    return padded


def test_rows_from_arrow_are_the_rows_that_went_in():
    table = through_arrow(TABLE)
    assert table[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["city"] is None
    for row, padded in zip(TABLE, table, strict=True):
        assert convert("openai", padded, "chat") == convert("openai", row, "chat")
        assert convert("openai", json.loads(json.dumps(padded)), "chat") == convert("openai", row, "chat")


def test_pairs_from_arrow_are_the_pairs_that_went_in():
    def row(prompt, **arguments):
        chosen = [reply(None, tool_calls=calls(("f", arguments)))]
        return {"prompt": [user(prompt)], "chosen": chosen, "rejected": [reply("no")]}

    rows = [row("a", x=1), row("b", city="Bern"), {"prompt": [user("c")], "chosen": [reply("d")], "rejected": []}]
    for plain, padded in zip(rows[:2], through_arrow(rows), strict=False):
        assert convert("openai", padded, "preference") == convert("openai", plain, "preference")


def test_structs_of_nothing_but_nulls_are_absent():
    nothing = {"name": None, "arguments": None, "function": {"name": None}}
    messages = [
        {**user("a"), "function_call": nothing},
        {**reply("b"), "function_call": nothing, "tool_calls": nothing},
    ]
    row = {"messages": messages, "tools": [nothing], "chosen": {"role": None}, "rejected": {"role": None}}
    assert convert("openai", row, "preference") == convert("openai", {"messages": CHAT})


def test_nulls_of_rows_that_are_not_from_arrow_are_kept():
    arguments = {"x": None, "y": {"z": None}}
    row = {"messages": [user("a"), {"role": "assistant", "tool_calls": calls(("f", arguments))}]}
    assert convert("openai", row).messages[1] == reply("", tool_calls=calls(("f", arguments)))
    row["messages"].append({"role": "tool", "content": {"x": None}, "tool_call_id": "1"})
    row["messages"].append(reply("b"))
    assert convert("openai", row).messages[2]["content"] == '{"x": null}'
    as_text = {"messages": json.dumps([reply("x"), user("a"), reply("", tool_calls=calls(("f", arguments)))])}
    assert convert("openai", as_text, assistant_first=True).messages[2] == reply("", tool_calls=calls(("f", arguments)))


@pytest.mark.parametrize(
    ("question", "further"),
    [
        ({**user("a"), "tool_calls": []}, [{**calls(("g", {}))[0], "id": "1"}]),
        ({**user([{"type": "text", "text": "a"}]), "tool_calls": []}, []),
        ({**user("a"), "tool_calls": "[]"}, []),
    ],
    ids=["calls differ in keys", "contents differ in type", "calls differ in type"],
)
def test_one_list_that_arrow_cannot_hold_is_enough(question, further):
    made = calls(("f", {"x": None}))
    sample = convert("openai", {"messages": [question, reply("", tool_calls=made + further)]})
    assert sample.messages[1]["tool_calls"][:1] == made
    plain = convert("openai", {"messages": [{**user("a"), "tool_calls": []}, reply("", tool_calls=made)]})
    assert plain.messages[1]["tool_calls"] == calls(("f", {}))


def test_padding_anywhere_in_a_tools_parameters_is_removed():
    either = [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    padded = [{"type": "string", "items": None}, either[1]]
    tools = [{"name": "f", "parameters": parameters(x={"anyOf": padded, "default": None})}]
    found = convert("openai", {"messages": CHAT, "tools": tools}).tools[0]["function"]
    assert found == {"name": "f", "parameters": parameters(x={"anyOf": either})}


def test_a_call_next_to_a_padded_one():
    call = {"function": {"name": None, "arguments": None}, "name": "f", "arguments": {}}
    sample = convert("openai", {"messages": [user("a"), reply("", tool_calls=[call])]})
    assert sample.messages[1]["tool_calls"] == calls(("f", {}))


def test_a_default_of_null_in_a_tools_parameters_is_kept():
    tools = [{"name": "f", "parameters": parameters(x={"type": ["number", "null"], "default": None})}]
    assert convert("openai", {"messages": CHAT, "tools": tools}).tools[0]["function"] == tools[0]
