"""Conversations are trained as they are served, and nothing is lost silently: laws checked on the encoded tokens.

The checks know nothing of the encoder: prompts are rendered by transformers, texts are searched in decoded tokens.
"""

from __future__ import annotations

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting_templates import REWRITING, Rewriting
from templates import Shape, tokenizer_for
from transformers.utils.chat_template_utils import render_jinja_template

from bumblecore_core import ChatSample, Dropped, RowError
from bumblecore_core.toolkit.chat import ChatEncoder, EncodedChat
from bumblecore_core.toolkit.message_forms import in_form

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks something up.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}
ALL = frozenset({"system", "reasoning", "calls", "parallel", "text with call"})
PRODUCT = Rewriting("product", "", ALL)
words = st.text(st.sampled_from("abcdefgh äöü12.,"), min_size=1, max_size=12).map(lambda text: f"w{text.strip()}w")
_made: dict[str, tuple] = {}


def template_of(shape: Rewriting) -> str:
    if shape.name != "product":
        return shape.template
    from importlib import resources

    return resources.files("bumblecore_plugins.commands").joinpath("chatml.jinja").read_text(encoding="utf-8")


def made(shape: Rewriting, **options):
    key = shape.name + json.dumps(options, sort_keys=True)
    if key not in _made:
        plain = Shape(
            name=shape.name, template="", eos=shape.eos, header="", said=str, specials=shape.specials, bos="<s>"
        )
        tokenizer = tokenizer_for(plain, "gpt4", template_of(shape))
        _made[key] = tokenizer, ChatEncoder(tokenizer, **options)
    return _made[key]


@st.composite
def conversations(draw, can: frozenset[str]):
    """Messages of a kind that a template can express, their texts all different."""
    messages = []
    number = iter(range(1000))

    def text() -> str:
        return f"{draw(words)} {next(number)}."

    def call():
        what = f"{draw(words)} {next(number)};"
        return {"type": "function", "function": {"name": "look_up", "arguments": {"what": what}}}

    def reply(**more):
        message = {"role": "assistant", "content": text(), **more}
        if "reasoning" in can and draw(st.booleans()):
            message["reasoning_content"] = text()
        return message

    if "system" in can and draw(st.booleans()):
        messages.append({"role": "system", "content": text()})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": text()})
        if "calls" in can and draw(st.booleans()):
            calls = [call() for _ in range(draw(st.integers(1, 2 if "parallel" in can else 1)))]
            message = {"role": "assistant", "content": "", "tool_calls": calls}
            if "text with call" in can and draw(st.booleans()):
                message["content"] = text()
            messages += [message, *({"role": "tool", "content": text()} for _ in calls)]
        messages.append(reply())
    return messages


def decoded(tokenizer, ids) -> str:
    return tokenizer.backend_tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)


def texts_of(message):
    yield from (message[name] for name in ("content", "reasoning_content") if message.get(name))
    for call in message.get("tool_calls", ()):
        yield call["function"]["name"]
        yield call["function"]["arguments"]["what"]


def check_laws(shape: Rewriting, messages, tools) -> list[EncodedChat]:
    tokenizer, encoder = made(shape)
    (encoded,) = encoder.turns([ChatSample(messages=tuple(copy.deepcopy(messages)), tools=tools)])
    assert not isinstance(encoded, RowError | Dropped), getattr(encoded, "problem", encoded)
    spans = [(chat, start, end) for chat in encoded for start, end in chat.spans]
    assistants = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(spans) == len(assistants)
    for at, (chat, start, end) in zip(assistants, spans, strict=True):
        asked = prompt_of(tokenizer, encoder, messages[:at], tools)
        prompt = chat.input_ids[:start].tolist()
        ids = tokenizer(asked, add_special_tokens=False).input_ids
        if prompt != ids:  # an empty think block belongs to the prompt
            assert not messages[at].get("reasoning_content")
            assert re.fullmatch(r"(<think>)?\s*</think>\s*", decoded(tokenizer, prompt).removeprefix(asked))
        trained = decoded(tokenizer, chat.input_ids[start:end])
        for text in texts_of(messages[at]):
            assert text in trained
        assert trained.endswith((shape.eos, *shape.specials))
        assert "</think>" not in trained or messages[at].get("reasoning_content")
        others = {text for other in assistants if other != at for text in texts_of(messages[other])} - {"look_up"}
        assert not [text for text in others if text in trained]
    whole = "".join(decoded(tokenizer, chat.input_ids) for chat in encoded)
    for message in messages:
        if message["role"] != "assistant":
            assert message["content"] in whole
    return encoded


def prompt_of(tokenizer, encoder, messages, tools) -> str:
    """What transformers renders to ask for the next turn, with the messages in the form that the template reads."""
    given = list(tools) if tools else None
    formed = in_form(copy.deepcopy(messages), encoder._text._form(given, {}))
    (text,), _ = render_jinja_template(
        [formed],
        given,
        chat_template=tokenizer.chat_template,
        add_generation_prompt=True,
        **tokenizer.special_tokens_map,
    )
    return text


@pytest.mark.parametrize("shape", [*REWRITING, PRODUCT], ids=lambda shape: shape.name)
@given(data=st.data())
@settings(max_examples=40)
def test_conversations_are_trained_as_served_and_whole(shape, data):
    messages = data.draw(conversations(shape.can))
    called = any(message.get("tool_calls") for message in messages)
    check_laws(shape, messages, (TOOL,) if called else None)


@pytest.mark.parametrize("name", ["qwen3_like", "r1_like", "gptoss_like"])
def test_a_template_that_rewrites_history_gives_a_text_for_each_turn(name):
    shape = next(shape for shape in REWRITING if shape.name == name)
    messages = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "One.", "reasoning_content": "Think of one."},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "Two.", "reasoning_content": "Think of two."},
    ]
    first, second = check_laws(shape, messages, None)
    tokenizer, _ = made(shape)
    assert "Think of one." in decoded(tokenizer, first.input_ids)
    assert "Think of one." not in decoded(tokenizer, second.input_ids)


def test_the_whole_text_of_a_turn_by_hand():
    shape = next(shape for shape in REWRITING if shape.name == "r1_like")
    tokenizer, encoder = made(shape)
    messages = ({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>\nAdd.\n</think>\n\n4"})
    ((chat,),) = encoder.turns([ChatSample(messages=messages)])
    ((start, end),) = chat.spans
    assert decoded(tokenizer, chat.input_ids[:start]) == "<s><|user|>2+2?<|assistant|><think>\n"
    assert decoded(tokenizer, chat.input_ids[start:end]) == "Add.\n</think>\n\n4<|eos|>"
    ((plain,),) = encoder.turns([ChatSample(messages=(messages[0], {"role": "assistant", "content": "4"}))])
    ((start, end),) = plain.spans
    assert decoded(tokenizer, plain.input_ids[:start]) == "<s><|user|>2+2?<|assistant|><think>\n\n</think>\n\n"
    assert decoded(tokenizer, plain.input_ids[start:end]) == "4<|eos|>"
