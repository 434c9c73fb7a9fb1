"""Nothing of a row is lost: rows made from samples convert back to them."""

from __future__ import annotations

import copy
import json

from format_rows import calls, convert, reply, to_sharegpt, user
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core import ChatSample, TextSample

CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
TEXT = st.text(CHARACTERS, max_size=12)
FULL = st.text(CHARACTERS, min_size=1, max_size=12)
# Null members of objects are for the tests of padding.
JSON = st.recursive(
    st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner | st.none(), max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
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
