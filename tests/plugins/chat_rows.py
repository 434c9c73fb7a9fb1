"""Conversations for the tests of chat encoding, with one small tokenizer and any template."""

from __future__ import annotations

from rewriting_templates import ASK, CALLS, IM
from templates import SHAPES, tokenizer_for

from bumblecore_core import ChatSample, RowError
from bumblecore_core.toolkit.chat import ChatEncoder

PLAIN = next(shape for shape in SHAPES if shape.name == "chatml")
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": {}}}
QUESTION = {"role": "user", "content": "What?"}
CALLING = "{% for m in messages %}" + IM + "{{ m.content or '' }}" + CALLS + "{{ '<|im_end|>\\n' }}{% endfor %}" + ASK


def call(**arguments):
    return {"type": "function", "function": {"name": "look_up", "arguments": arguments}}


def reply(content="", **more):
    return {"role": "assistant", "content": content, **more}


def encode(template, *messages, tools=None, kwargs=None, **options):
    """(tokenizer, what the encoder gives) of one conversation."""
    tokenizer = tokenizer_for(PLAIN, "gpt4", template)
    (entry,) = ChatEncoder(tokenizer, **options).turns(
        [ChatSample(messages=messages, tools=tools, template_kwargs=kwargs)]
    )
    return tokenizer, entry


def trained(tokenizer, chats):
    return [tokenizer.decode(chat.input_ids[start:end]) for chat in chats for start, end in chat.spans]


def problem(entry):
    assert isinstance(entry, RowError), entry
    return entry.problem.code, entry.problem.field
