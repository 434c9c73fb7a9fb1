"""Rows of every built-in data format and what they convert to."""

from __future__ import annotations

import copy
import json

import pytest

from bumblecore_core import RowError
from bumblecore_plugins.data_formats import bumble_data_formats

RECORDS = {record.name: record for record in bumble_data_formats()}


def build(name, **options):
    record = RECORDS[name]
    return record.build(options=record.options(**options))


def convert(name, row, reads=None, **options):
    """The sample of `row`; `reads`: the kind that the stage reads, which `text` is not passed."""
    before = copy.deepcopy(row)
    sample = build(name, **options).convert(row=row, **({} if reads is None else {"reads": reads}))
    assert row == before, "a format must not change the row"
    return sample


def kinds(row):
    """The formats that claim `row`, each with its kinds."""
    found = {name: record.detect(row) for name, record in RECORDS.items()}
    return {name: (kinds,) if isinstance(kinds, str) else kinds for name, kinds in found.items() if kinds}


def problem(name, row, reads=None, **options):
    with pytest.raises(RowError) as caught:
        convert(name, row, reads, **options)
    return caught.value.problem


def user(text):
    return {"role": "user", "content": text}


def reply(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text, **more):
    return {"role": "tool", "content": text, **more}


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
