"""Rows of every built-in data format and what they convert to."""

from __future__ import annotations

import copy
import json

import pytest

from bumblecore_core import RowError
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
