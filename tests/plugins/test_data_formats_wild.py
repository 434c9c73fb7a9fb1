"""Any row gives a sample or a `RowError`, never another exception."""

from __future__ import annotations

import pytest
from format_rows import RECORDS, build, kinds, reply, tool, user
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core import ChatSample, FeedbackSample, PreferenceSample, RowError, TextSample
from bumblecore_core.errors import CODES, Problem

SAMPLES = {"text": TextSample, "chat": ChatSample, "preference": PreferenceSample, "feedback": FeedbackSample}
ROW_KEYS = "text instruction output history conversations messages prompt completion chosen rejected label kto_tag"
ROW_KEYS += " tools functions system query answers chat_template_kwargs images zzz"
MESSAGE_KEYS = "role from content value tool_calls function_call reasoning thinking weight train loss name type text"
MESSAGE_KEYS += " arguments function id tool_call_id zzz"
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-1, 2)
    | st.sampled_from([0.5, float("nan"), 10**400])
    | st.sampled_from(["", "a", "human", "user", "assistant", "tool", "gpt", "system", "function_call"])
    | st.sampled_from(["{}", "[]", "null", "[{}]", '{"name": "f", "arguments": {}}', '[{"role": "user"}]', "[["])
)
MESSAGE = st.dictionaries(st.sampled_from(MESSAGE_KEYS.split()), LEAVES, max_size=4)
LIKELY = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "gpt"]), "content": st.text(max_size=2) | LEAVES},
    optional={key: LEAVES | st.lists(MESSAGE, max_size=2) for key in ("tool_calls", "weight", "train", "thinking")},
)
VALUE = st.recursive(
    LEAVES | MESSAGE | LIKELY,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MESSAGE_KEYS.split()), inner, max_size=3)
    ),
    max_leaves=8,
)
ROWS = st.dictionaries(st.sampled_from(ROW_KEYS.split()), VALUE | st.lists(LIKELY, max_size=3), max_size=6)


def converted(name, row, reads):
    """The sample, or the problem of the `RowError`."""
    try:
        return build(name).convert(row=row, **({} if name == "text" else {"reads": reads}))
    except RowError as error:
        return error.problem


@settings(max_examples=80, deadline=None)
@given(row=ROWS, reads=st.sampled_from([None, *SAMPLES]))
def test_any_row_gives_a_sample_or_a_row_error(row, reads):
    claimed = kinds(row)
    for name in RECORDS:
        assert set(claimed.get(name, ())) <= SAMPLES.keys()
        found = converted(name, row, reads)
        if isinstance(found, Problem):
            assert found.code in CODES
            assert found.field
        elif reads in claimed.get(name, ()):
            assert isinstance(found, SAMPLES[reads])
        else:
            assert isinstance(found, tuple(SAMPLES.values()))


@pytest.mark.parametrize(
    "nested",
    [
        lambda deep: {"messages": [{**user("a"), "function_call": deep}, reply("b")]},
        lambda deep: {"messages": [user("a"), tool(deep), reply("b")]},
        lambda deep: {"instruction": "a", "output": "b", "zzz": deep},
        lambda deep: {"instruction": "a", "output": "b", "system": deep},
        lambda deep: {"messages": "[" * 100_000},
    ],
)
def test_a_row_of_any_depth(nested):
    deep = {"zzz": None}
    for _ in range(3000):
        deep = {"zzz": deep}
    row = nested(deep)
    (name,) = kinds(row)
    found = converted(name, row, "chat")
    assert found.code in ("BC011", "BC013")  # newer Pythons write deeper values as JSON; a tool may not answer a user
    assert found.field.split("[")[0] == list(row)[-1]
