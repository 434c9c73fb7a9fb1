"""Rows that can give several kinds of sample, and the further schemas: the kind that the stage reads decides."""

from __future__ import annotations

import pytest
from format_rows import calls, convert, kinds, problem, reply, user

from bumblecore_core import ChatSample, FeedbackSample, PreferenceSample

SYSTEM = {"role": "system", "content": "be brief"}
CHAT = [user("a"), reply("b")]
PAIR = PreferenceSample(prompt=(user("a"),), chosen=(reply("b"),), rejected=(reply("c"),))
SFT = ChatSample(messages=tuple(CHAT))
KTO = FeedbackSample(prompt=(user("a"),), completion=(reply("b"),), label=True)
TURNS = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
WHOLE = {"chosen": CHAT, "rejected": [user("a"), reply("c")]}
SEVERAL = [
    ("openai", {"prompt": "a", "messages": CHAT, **WHOLE}, {"chat": SFT, "preference": PAIR}),
    ("openai", {"messages": CHAT, **WHOLE}, {"chat": SFT, "preference": PAIR}),
    ("openai", {"messages": CHAT, "label": True}, {"chat": SFT, "feedback": KTO}),
    ("openai", {"messages": CHAT, "kto_tag": True}, {"chat": SFT, "feedback": KTO}),
    ("openai", {"prompt": "a", "completion": "b", "label": True}, {"chat": SFT, "feedback": KTO}),
    (
        "openai",
        {"prompt": [user("a")], "completion": reply("b"), "chosen": "b", "rejected": "c", "label": True},
        {"chat": SFT, "feedback": KTO, "preference": PAIR},
    ),
    (
        "alpaca",
        {"instruction": "a", "output": "b", "chosen": "b", "rejected": "c", "kto_tag": True},
        {"chat": SFT, "feedback": KTO, "preference": PAIR},
    ),
    ("alpaca", {"instruction": "a", "output": "b", "label": True}, {"chat": SFT, "feedback": KTO}),
    ("sharegpt", {"conversations": TURNS, "label": True}, {"chat": SFT, "feedback": KTO}),
]


@pytest.mark.parametrize(("name", "row", "samples"), SEVERAL)
def test_the_stage_decides(name, row, samples):
    assert {name: set(samples)} == {name: set(found) for name, found in kinds(row).items()}
    for kind, sample in samples.items():
        assert convert(name, row, kind) == sample


def test_sharegpt_conversations_that_end_with_a_reply_are_chats_next_to_a_pair():
    row = {"conversations": TURNS, "chosen": "b", "rejected": "c"}
    assert kinds(row) == {"sharegpt": ("preference", "chat")}
    assert convert("sharegpt", row, "chat") == SFT
    assert kinds({**row, "conversations": TURNS[:1]}) == {"sharegpt": ("preference",)}
    assert convert("sharegpt", {**row, "conversations": TURNS[:1]}, "preference") == PAIR


def test_without_a_stage_the_most_specific_kind_is_made():
    assert convert("openai", {"prompt": "a", "messages": CHAT, **WHOLE}) == PAIR
    assert convert("openai", {"messages": CHAT, "label": True}) == KTO


def test_a_kind_that_a_row_does_not_give_is_left_to_the_caller():
    assert convert("openai", {"messages": CHAT}, "preference") == SFT
    assert convert("alpaca", {"instruction": "a", "output": "b"}, "text") == SFT


@pytest.mark.parametrize(
    ("code", "field", "name", "row", "reads"),
    [
        ("BC007", "label", "openai", {"messages": CHAT}, "feedback"),
        ("BC007", "kto_tag", "alpaca", {"instruction": "a", "output": "b"}, "feedback"),
        ("BC007", "kto_tag", "sharegpt", {"conversations": TURNS}, "feedback"),
        ("BC011", "label", "openai", {"messages": CHAT, "label": 1}, "feedback"),
        ("BC011", "label", "alpaca", {"instruction": "a", "output": "b", "label": "good"}, "feedback"),
        ("BC007", "rejected", "openai", {"messages": CHAT, "chosen": "b"}, "preference"),
        ("BC007", "chosen", "alpaca", {"instruction": "a", "output": "b", "rejected": "b"}, "preference"),
        ("BC007", "rejected", "sharegpt", {"conversations": TURNS[:1], "chosen": "b"}, "preference"),
    ],
)
def test_what_a_row_lacks_for_the_stage_is_named(code, field, name, row, reads):
    found = problem(name, row, reads)
    assert (found.code, found.field) == (code, field)


@pytest.mark.parametrize(
    ("name", "row", "reads"),
    [
        ("openai", {"messages": CHAT}, "chat"),
        ("openai", {"prompt": "a", "completion": "b"}, "chat"),
        ("openai", {"prompt": "a", "completion": "b", "label": True}, "feedback"),
        ("openai", {"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ("openai", WHOLE, "preference"),
        ("alpaca", {"instruction": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ("sharegpt", {"conversations": TURNS[:1], "chosen": "b", "rejected": "c"}, "preference"),
        ("xlam", {"query": "a", "tools": "", "answers": ""}, "chat"),
    ],
)
def test_the_system_field_of_every_kind(name, row, reads):
    sample = convert(name, {**row, "system": "be brief"}, reads)
    messages = sample.messages if reads == "chat" else sample.prompt
    assert messages[:2] == (SYSTEM, user("a"))
    assert convert(name, {**row, "system": ""}, reads) == convert(name, row, reads)


def test_a_system_message_that_the_conversation_holds_too():
    row = {"messages": [SYSTEM, *CHAT], "system": "be brief"}
    assert convert("openai", row).messages == (SYSTEM, *CHAT)
    assert problem("openai", {**row, "system": "be kind"}).code == "BC016"


def test_a_prompt_is_context_only():
    prompt = [user("x"), reply("y", weight=0.5), user("a")]
    sample = convert("openai", {"prompt": prompt, "completion": "b"}, "chat")
    assert sample.messages == (user("x"), reply("y", weight=0.0), user("a"), reply("b"))
    for row in (
        {"prompt": prompt, "completion": "b", "label": True},
        {"prompt": prompt, "chosen": "b", "rejected": "c"},
    ):
        assert convert("openai", row).prompt == (user("x"), reply("y"), user("a"))


def test_pairs_of_messages_with_weights_and_parts():
    def turns(answer):
        return [
            {"role": "user", "content": [{"type": "text", "value": "a"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "value": answer}], "loss_weight": 1.0},
        ]

    row = {"chosen_messages": turns("b"), "rejected_messages": turns("c")}
    assert kinds(row) == {"openai": ("preference",)}
    assert convert("openai", row, "preference") == PAIR


def test_questions_that_are_answered_by_calls():
    row = {
        "id": 7,
        "query": "a",
        "answers": '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]',
        "tools": '[{"name": "f", "description": "F.", "parameters": {"x": {"type": "int"}}}]',
    }
    assert kinds(row) == {"xlam": ("chat",)}
    sample = convert("xlam", row, "chat")
    assert sample.messages == (user("a"), reply("", tool_calls=calls(("f", {"x": 1}), ("g", {}))))
    assert [tool["function"]["name"] for tool in sample.tools] == ["f"]
    assert sample.warnings == ()
    assert convert("xlam", {**row, "answers": "[]"}).messages == (user("a"), reply(""))


@pytest.mark.parametrize(
    ("name", "row", "options"),
    [
        ("openai", {"conversation": {"messages": CHAT}}, {"messages": "conversation.messages"}),
        ("openai", {"conversation.messages": CHAT}, {"messages": "conversation.messages"}),
        ("openai", {"a": {"b": {"p": "a", "c": "b"}}}, {"prompt": "a.b.p", "completion": "a.b.c"}),
        ("sharegpt", {"data": {"turns": TURNS}}, {"conversations": "data.turns"}),
        ("alpaca", {"task": {"in": "a", "out": "b"}}, {"instruction": "task.in", "output": "task.out"}),
    ],
)
def test_fields_in_nested_objects(name, row, options):
    assert convert(name, row, "chat", **options) == SFT


def test_a_nested_field_that_is_missing():
    found = problem("openai", {"conversation": {"text": "secret"}}, "chat", messages="conversation.messages")
    assert (found.code, found.field) == ("BC007", "conversation.messages")
    assert convert("text", {"doc": {"body": "a"}}, field="doc.body").text == "a"
