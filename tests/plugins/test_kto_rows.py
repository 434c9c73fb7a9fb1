"""What the stage `kto` makes of rows, and what rows the data formats make into feedback."""

from __future__ import annotations

import numpy as np
import pytest
from format_rows import RECORDS as FORMATS
from format_rows import convert, kinds, problem, reply, user
from hypothesis import given, settings
from hypothesis import strategies as st
from kto_rows import SAMPLES, SOURCES, row, stage_of
from transformers import AutoTokenizer

from bumblecore_core import Dropped, FeedbackSample, RowError
from bumblecore_core.testing import check_data_format
from bumblecore_plugins.stages.kto import other_rows
from workbench import make_tokenizer, sentence


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def completions(tokenizer, example, side):
    ids, spans = example.columns[f"{side}_ids"].tolist(), example.columns[f"{side}_spans"].reshape(-1, 2).tolist()
    return [tokenizer.decode(ids[start:end]) for start, end in spans]


def test_a_rows_other_completion_is_that_of_the_row_before_with_another_prompt(tokenizer):
    assert other_rows(SAMPLES) == SOURCES
    examples = stage_of(tokenizer).encode(samples=SAMPLES)
    for sample, source, example in zip(SAMPLES, SOURCES, examples, strict=True):
        assert completions(tokenizer, example, "row") == [sample.completion[0]["content"] + "<|im_end|>"]
        assert completions(tokenizer, example, "other") == [SAMPLES[source].completion[0]["content"] + "<|im_end|>"]
        prompt = tokenizer.apply_chat_template(list(sample.prompt), tokenize=False, add_generation_prompt=True)
        for side in ("row", "other"):
            start = example.columns[f"{side}_spans"][0]
            assert tokenizer.decode(example.columns[f"{side}_ids"][:start]) == prompt
        assert list(example.columns["label"]) == [int(sample.label)]
        assert example.count == 1


@settings(max_examples=60)
@given(prompts=st.lists(st.integers(0, 3), max_size=12))
def test_other_rows_have_other_prompts_where_there_is_one(prompts):
    samples = [row(str(prompt), "a", True) for prompt in prompts]
    for at, source in enumerate(other_rows(samples)):
        if len(set(prompts)) == 1:
            assert source == at
        else:
            steps = next(n for n in range(1, len(prompts)) if prompts[at - n] != prompts[at])
            assert source == (at - steps) % len(prompts)


def test_a_row_alone_stays(tokenizer):
    (alone,) = stage_of(tokenizer).encode(samples=SAMPLES[:1])
    assert alone.columns["other_spans"].size == 0
    assert np.array_equal(alone.columns["other_ids"], alone.columns["row_ids"][:1])
    assert alone.length == len(alone.columns["row_ids"])


def test_what_is_left_out_is_nobodys_other_completion(tokenizer):
    empty = row("a", "", True)
    bad = FeedbackSample(prompt=(user("b"),), completion=(reply("c \ud800"),), label=False)
    found = stage_of(tokenizer).encode(samples=[SAMPLES[0], empty, bad, SAMPLES[3]])
    assert isinstance(found[1], Dropped)
    assert found[1].code == "BC015"
    assert isinstance(found[2], RowError)
    assert found[2].problem.code == "BC020"
    assert completions(tokenizer, found[3], "other") == [SAMPLES[0].completion[0]["content"] + "<|im_end|>"]
    assert completions(tokenizer, found[0], "other") == [SAMPLES[3].completion[0]["content"] + "<|im_end|>"]


def test_an_empty_reply_is_an_error_in_strict_runs(tokenizer):
    stage = stage_of(tokenizer, strict=True)
    (found,) = stage.encode(samples=[row("a", "", True)])
    assert isinstance(found, RowError)
    assert (found.problem.code, found.problem.field) == ("BC015", "completion[0].content")


def test_long_rows_are_cut_and_prompts_that_fill_the_length_left_out(tokenizer):
    short, long = row("a", sentence(1, 3), True), row("b", sentence(1, 60), False)
    filled = row(sentence(3, 60), "c", True)
    found = stage_of(tokenizer, max_length=40).encode(samples=[short, long, filled])
    assert [len(e.columns["row_ids"]) <= 40 and len(e.columns["other_ids"]) <= 40 for e in found[:2]] == [True, True]
    assert [e.truncated for e in found[:2]] == [False, True]
    assert found[1].columns["row_spans"][-1] == 40
    assert isinstance(found[2], Dropped)
    assert found[2].code == "BC028"


def test_the_preview_marks_the_completion_and_says_the_label(tokenizer):
    stage = stage_of(tokenizer)
    for sample, example in zip(SAMPLES, stage.encode(samples=SAMPLES), strict=True):
        segments = stage.preview(example=example.columns)
        assert [text for text, trained in segments if trained] == [sample.completion[0]["content"] + "<|im_end|>"]
        assert segments[-1][0].strip() == ("(desirable)" if sample.label else "(undesirable)")


FEEDBACK = FeedbackSample(prompt=(user("a good question"),), completion=(reply("a good answer"),), label=False)
TURNS = [{"from": "human", "value": "a good question"}, {"from": "gpt", "value": "a good answer"}]
ROWS = [
    ("alpaca", {"instruction": "a good question", "input": "", "output": "a good answer", "kto_tag": False}),
    ("sharegpt", {"conversations": TURNS, "kto_tag": False}),
    ("openai", {"prompt": "a good question", "completion": "a good answer", "label": False}),
    ("openai", {"prompt": [user("a good question")], "completion": [reply("a good answer")], "label": False}),
    ("openai", {"prompt": [user("a good question")], "completion": reply("a good answer"), "label": False}),
]


@pytest.mark.parametrize(("name", "given_row"), ROWS)
def test_a_row_of_each_format(name, given_row):
    assert convert(name, given_row, "feedback") == FEEDBACK
    assert kinds(given_row) == {name: ("feedback", "chat")}
    check_data_format(FORMATS[name].build(options=FORMATS[name].options()), [given_row], record=FORMATS[name])


def test_field_names_are_options():
    assert convert("alpaca", {"instruction": "a good question", "output": "a good answer", "ok": False}, label="ok")
    messages = [user("a good question"), reply("a good answer")]
    read = convert("sharegpt", {"messages": messages, "label": False}, conversations="messages", label="label")
    assert read == FEEDBACK
    assert (
        convert(
            "openai",
            {"q": "a good question", "a": "a good answer", "up": False},
            prompt="q",
            completion="a",
            label="up",
        )
        == FEEDBACK
    )


def test_conversations_before_the_labelled_turn_are_prompt():
    earlier = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    sample = convert("sharegpt", {"conversations": earlier + TURNS, "kto_tag": True, "system": "s", "tools": tools})
    assert [message["content"] for message in sample.prompt] == ["s", "x", "y", "a good question"]
    assert sample.completion == FEEDBACK.completion
    assert sample.label
    assert sample.tools is not None


@pytest.mark.parametrize(
    ("code", "field", "name", "bad"),
    [
        ("BC007", "label", "openai", {"prompt": "secret", "completion": "secret"}),
        ("BC007", "prompt", "openai", {"completion": "secret", "label": True}),
        ("BC011", "label", "openai", {"prompt": "secret", "completion": "secret", "label": 1}),
        ("BC011", "label", "openai", {"prompt": "secret", "completion": "secret", "label": "secret"}),
        ("BC011", "label", "openai", {"prompt": "secret", "completion": "secret", "label": None}),
        ("BC011", "completion", "openai", {"prompt": "secret", "completion": None, "label": True}),
        ("BC013", "prompt", "openai", {"prompt": [user("a"), reply("secret")], "completion": "secret", "label": True}),
        ("BC014", "completion", "openai", {"prompt": "secret", "completion": [], "label": True}),
        ("BC013", "completion[0]", "openai", {"prompt": "a", "completion": [user("secret")], "label": True}),
        ("BC011", "kto_tag", "alpaca", {"instruction": "secret", "output": "secret", "kto_tag": "true"}),
        ("BC011", "kto_tag", "sharegpt", {"conversations": TURNS, "kto_tag": 0}),
        ("BC014", "conversations", "sharegpt", {"conversations": TURNS[:1], "kto_tag": True}),
    ],
)
def test_bad_rows(code, field, name, bad):
    found = problem(name, bad, "feedback")
    assert (found.code, found.field) == (code, field)
    assert "secret" not in str(found)
