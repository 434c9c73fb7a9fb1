"""Prompts of pairs, labels that are false, and tools that stand alone."""

from __future__ import annotations

import pytest
from format_rows import calls, convert, reply, to_sharegpt, user

from bumblecore_core import FeedbackSample, PreferenceSample

F = {"type": "function", "function": {"name": "f"}}
SEARCH = {"type": "web_search"}


@pytest.mark.parametrize(
    ("tools", "expected"), [({"name": "f"}, F), ('{"name": "f"}', F), ([F], F), ([SEARCH], SEARCH), (SEARCH, SEARCH)]
)
def test_one_tool_given_alone_and_a_tool_that_is_no_function(tools, expected):
    row = {"conversations": to_sharegpt([user("a"), reply("b")], False), "tools": tools}
    assert convert("sharegpt", row).tools == (expected,)


def test_the_prompt_of_a_longer_conversation_may_be_its_last_turns():
    before = [user("a"), reply("b"), user("c")]
    row = {"prompt": "c", "chosen": [*before, reply("d")], "rejected": [*before, reply("e")]}
    expected = PreferenceSample(prompt=tuple(before), chosen=(reply("d"),), rejected=(reply("e"),))
    assert convert("openai", row) == expected


def test_a_prompt_may_end_with_a_tools_answer():
    called = {"role": "assistant", "content": "", "tool_calls": calls(("f", {}))}
    prompt = [user("a"), called, {"role": "tool", "content": "1"}]
    sample = convert("openai", {"prompt": prompt, "chosen": "b", "rejected": "c"})
    assert sample == PreferenceSample(prompt=tuple(prompt), chosen=(reply("b"),), rejected=(reply("c"),))


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize(
    ("name", "field", "row"),
    [
        ("alpaca", "kto_tag", {"instruction": "a", "output": "b"}),
        ("sharegpt", "kto_tag", {"conversations": to_sharegpt([user("a"), reply("b")], False)}),
        ("openai", "label", {"prompt": "a", "completion": "b"}),
    ],
)
def test_an_undesirable_reply_is_feedback_as_a_desirable_one_is(name, field, row, label):
    expected = FeedbackSample(prompt=(user("a"),), completion=(reply("b"),), label=label)
    assert convert(name, {**row, field: label}) == expected
