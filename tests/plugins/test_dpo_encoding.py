"""What the stage `dpo` makes of preference samples: tokens, spans, truncation, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from bumblecore_core import Dropped, PreferenceSample, RowError, StageContext, TokenExample
from bumblecore_plugins.stages import DpoOptions
from bumblecore_plugins.stages.dpo import PreferenceStage
from bumblecore_plugins.stages.pair_layout import named_side
from workbench import make_tokenizer, sentence


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def encode(tokenizer, *samples, max_length=200, **options):
    stage = PreferenceStage(DpoOptions(**options), StageContext(tokenizer=tokenizer, max_length=max_length))
    return stage.encode(samples=samples)


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


def sample(chosen, rejected, prompt=None):
    return PreferenceSample(
        prompt=tuple(prompt or [user(sentence(1, 4))]), chosen=tuple(chosen), rejected=tuple(rejected)
    )


def scored(tokenizer, example, side):
    """The text of the side's scored tokens, span by span."""
    ids = example.columns[f"{side}_ids"].tolist()
    spans = example.columns[f"{side}_spans"].reshape(-1, 2).tolist()
    return [tokenizer.decode(ids[start:end]) for start, end in spans]


def test_completions_are_scored_with_their_end_of_turn_and_nothing_else_is(tokenizer):
    history = [user("the cat"), reply("sat on"), user("a mat")]
    (example,) = encode(tokenizer, sample([reply("two red birds")], [reply("rain")], history))
    assert isinstance(example, TokenExample)
    assert scored(tokenizer, example, "chosen") == ["two red birds<|im_end|>"]
    assert scored(tokenizer, example, "rejected") == ["rain<|im_end|>"]
    whole = tokenizer.apply_chat_template([*history, reply("two red birds")], tokenize=False)
    assert tokenizer.decode(example.columns["chosen_ids"]) == whole
    assert example.count == 1
    prompt = tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True)
    shared = len(tokenizer(prompt).input_ids)
    both = len(example.columns["chosen_ids"]) + len(example.columns["rejected_ids"])
    assert both - example.length == shared


def test_a_completion_of_several_messages_scores_each_reply(tokenizer):
    long = [reply("two red"), user("by sea"), reply("birds")]
    (example,) = encode(tokenizer, sample(long, [reply("rain")]))
    assert scored(tokenizer, example, "chosen") == ["two red<|im_end|>", "birds<|im_end|>"]


def test_a_pair_is_cut_at_the_same_length_on_both_sides(tokenizer):
    given = sample([reply(sentence(1, 30))], [reply(sentence(2, 4))])
    (whole,) = encode(tokenizer, given)
    sizes = {side: len(whole.columns[f"{side}_ids"]) for side in ("chosen", "rejected")}
    limit = sizes["rejected"] + 3
    (cut,) = encode(tokenizer, given, max_length=limit)
    assert not whole.truncated
    assert cut.truncated
    assert len(cut.columns["chosen_ids"]) == limit < sizes["chosen"]
    assert np.array_equal(cut.columns["rejected_ids"], whole.columns["rejected_ids"])
    (turned,) = encode(tokenizer, sample(given.rejected, given.chosen), max_length=limit)
    assert turned.truncated
    assert np.array_equal(turned.columns["rejected_ids"], cut.columns["chosen_ids"])
    shorter = sizes["rejected"] - 2
    (both,) = encode(tokenizer, given, max_length=shorter)
    assert len(both.columns["chosen_ids"]) == len(both.columns["rejected_ids"]) == shorter
    assert both.columns["rejected_spans"].tolist()[-1] == shorter


def test_what_cannot_be_trained_is_left_out_with_its_reason(tokenizer):
    same = sample([reply("rain")], [reply("rain")])
    too_long = sample([reply("rain")], [reply("sea")], [user(sentence(3, 60))])
    equal_when_cut = sample([reply(sentence(1, 30))], [reply(sentence(1, 30) + " rain")])
    found = encode(tokenizer, same, too_long, equal_when_cut, sample([reply("a")], [reply("")]), max_length=40)
    assert [entry.code for entry in found] == ["BC017", "BC028", "BC017", "BC015"]
    assert all(isinstance(entry, Dropped) for entry in found)


@pytest.mark.parametrize(
    ("chosen", "rejected", "field"),
    [
        (["a"], [""], "rejected[0].content"),
        ([""], ["a"], "chosen[0].content"),
        (["a", "by sea", ""], ["b"], "chosen[2].content"),
    ],
    ids=str,
)
def test_an_error_names_the_message_of_its_side(tokenizer, chosen, rejected, field):
    sides = [[(reply, user)[at % 2](text) for at, text in enumerate(texts)] for texts in (chosen, rejected)]
    stage = PreferenceStage(DpoOptions(), StageContext(tokenizer=tokenizer, max_length=200, strict=True))
    (found,) = stage.encode(samples=[sample(*sides)])
    assert isinstance(found, RowError)
    assert (found.problem.code, found.problem.field) == ("BC015", field)


def test_an_error_about_the_prompt_names_its_place_there():
    def named(field):
        return named_side(RowError(code="BC024", field=field, problem="x", fix="y"), "chosen", 2).problem.field

    assert [named(f"messages[{at}].role") for at in (0, 1, 2)] == ["prompt[0].role", "prompt[1].role", "chosen[0].role"]
    assert named("messages") == "messages"


def test_the_preview_marks_both_completions(tokenizer):
    stage = PreferenceStage(DpoOptions(), StageContext(tokenizer=tokenizer, max_length=100))
    (example,) = stage.encode(samples=[sample([reply("two red birds")], [reply("rain")])])
    segments = stage.preview(example=example.columns)
    assert [text for text, trained in segments if trained] == ["two red birds<|im_end|>", "rain<|im_end|>"]


def test_the_preview_of_several_messages_marks_only_the_trained_ones(tokenizer):
    stage = PreferenceStage(DpoOptions(), StageContext(tokenizer=tokenizer, max_length=200))
    chosen = [reply("first"), {"role": "user", "content": "between"}, reply("second")]
    (example,) = stage.encode(samples=[sample(chosen, [reply("rain")])])
    segments = stage.preview(example=example.columns)
    trained = [text for text, is_trained in segments if is_trained]
    assert trained == ["first<|im_end|>", "second<|im_end|>", "rain<|im_end|>"]
    assert any("between" in text for text, is_trained in segments if not is_trained)
