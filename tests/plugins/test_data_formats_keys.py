"""Every key of a row and a message is read, harmless, or reported; media are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from format_rows import calls, convert, problem, reply, tool, user

from bumblecore_core.errors import CODES
from bumblecore_plugins.data_formats.notes import HARMLESS, MEDIA

CHAT = [user("a"), reply("b")]
TURNS = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
ROWS = {
    "openai": {"messages": CHAT},
    "sharegpt": {"conversations": TURNS},
    "alpaca": {"instruction": "a", "output": "b"},
    "xlam": {"query": "a", "tools": "[]", "answers": "[]"},
}
each_format = pytest.mark.parametrize("name", ROWS)


def unread(what, *keys):
    return tuple(f"BC083 the {what} key '{key}' is not read" for key in keys)


@each_format
def test_an_unknown_key_of_a_row_is_reported(name):
    row = {"difficulty": 3, **ROWS[name], "rationale": "secret"}
    assert convert(name, row, "chat").warnings == unread("row", "difficulty", "rationale")


@each_format
@pytest.mark.parametrize("nothing", [None, "", [], {}, [None], {"a": None}, [{"a": ""}]])
def test_a_key_without_content_is_not(name, nothing):
    row = {**ROWS[name], "rationale": nothing, "images": nothing}
    assert convert(name, row, "chat").warnings == ()


@each_format
def test_a_harmless_key_is_not(name):
    assert {"id", "source", "dataset", "score", "lang", "created", "metadata", "parallel_tool_calls"} <= HARMLESS
    assert convert(name, {**ROWS[name], **dict.fromkeys(HARMLESS, "x")}, "chat").warnings == ()


@each_format
@pytest.mark.parametrize("key", sorted(MEDIA))
def test_media_are_refused(name, key):
    found = problem(name, {**ROWS[name], key: ["secret.jpg"]}, "chat")
    assert (found.code, found.field) == ("BC084", key)
    assert "secret" not in str(found)


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video"])
def test_media_among_the_parts_of_a_message_are_refused(kind):
    parts = [{"type": "text", "text": "a"}, {"type": kind, kind: {"url": "secret"}}]
    for row in ({"messages": [user(parts), reply("b")]}, {"messages": [user("a"), tool(parts), reply("b")]}):
        found = problem("openai", row)
        assert found.code == "BC084"
        assert found.field.endswith(".content[1].type")


def test_messages_are_accounted_for_once():
    messages = [
        {**user("a"), "mood": "glad", "id": 1},
        reply("b", refusal="secret", annotations=[], audio=None, finish_reason="stop"),
        {**user("c"), "thinking": "secret", "mood": "sad"},
        reply("d", refusal="other", tool_call_id="1"),
    ]
    expected = unread("message", "mood", "refusal", "thinking", "tool_call_id")
    assert convert("openai", {"messages": messages}).warnings == expected
    turns = [{"from": turn.pop("role"), "value": turn.pop("content"), **turn} for turn in messages]
    assert convert("sharegpt", {"conversations": turns}).warnings == expected


def test_both_sides_of_a_pair_are_accounted_for():
    row = {"prompt": [{**user("a"), "x": 1}], "chosen": reply("b", y=1), "rejected": reply("c", y=1, z=1)}
    assert sorted(convert("openai", row, "preference").warnings) == list(unread("message", "x", "y", "z"))


def test_calls_and_parts_are_accounted_for():
    call = {**calls(("f", {}))[0], "index": 0, "parsed": {"a": 1}}
    parts = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]
    sample = convert("openai", {"messages": [user(parts), reply(None, tool_calls=[call])]})
    assert sample.warnings == (*unread("content part", "cache_control"), *unread("tool call", "parsed"))


def test_a_key_that_may_be_a_text_is_not_shown():
    row = {**ROWS["openai"], "a secret\n": 1, "s" * 41: 1, "\x1b[31m": 1}
    assert convert("openai", row).warnings == ("BC083 a row key that is not a word is not read",)


def test_what_other_stages_read_is_known():
    row = {**ROWS["openai"], "prompt": "a", "chosen": CHAT, "rejected": CHAT, "label": True, "completion": "b"}
    assert convert("openai", row, "chat").warnings == ()
    row = {"chat": CHAT, "messages": "x", "prompt": "a", "chosen": "b", "rejected": "c", "label": True}
    assert convert("openai", row, "chat", messages="chat").warnings == ()
    row = {**ROWS["alpaca"], "kto_tag": True, "chosen": "b", "rejected": "c"}
    assert convert("alpaca", row, "chat").warnings == ()


def test_another_schema_is_known_as_a_whole():
    both = {**ROWS["openai"], **ROWS["alpaca"], "input": "x", "text": "everything"}
    assert convert("openai", both, "chat").warnings == ()
    assert convert("alpaca", both, "chat").warnings == ()
    part = {**ROWS["openai"], "instruction": "be kind", "input": "x"}
    assert convert("openai", part, "chat").warnings == unread("row", "instruction", "input")


def test_objects_that_a_dotted_field_enters_are_accounted_for():
    row = {"conversation": {"messages": CHAT, "summary": "secret", "id": 1, "tools": None}, "other": {"tools": [1]}}
    sample = convert("openai", row, messages="conversation.messages", tools="conversation.tools")
    assert sample.warnings == unread("row", "other", "summary")
    row = {"conversation": {"messages": CHAT, "images": ["secret"]}}
    assert problem("openai", row, messages="conversation.messages").field == "conversation.images"


def test_an_object_that_no_field_enters_is_one_key():
    row = {"conversation.messages": CHAT, "conversation": {"messages": "secret", "images": ["secret"]}}
    assert convert("openai", row, messages="conversation.messages").warnings == unread("row", "conversation")


def test_plain_text_may_have_any_other_columns():
    assert convert("text", {"text": "a", "title": "b", "images": ["c"]}).warnings == ()


def test_the_codes_are_known():
    assert {"BC083", "BC084"} <= CODES.keys()


def test_the_harmless_keys_are_documented():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    quoted = [line for line in page.splitlines() if line.startswith("> `")]
    assert set(re.findall(r"`(\w+)`", "\n".join(quoted))) == HARMLESS
