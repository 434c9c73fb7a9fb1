"""Reasoning in every form: under several names, inside the content, empty, doubled, or lost."""

from __future__ import annotations

import pytest
from chat_rows import CALLING, QUESTION, call, encode, problem, reply, trained
from rewriting_templates import ASK, IM, REWRITING
from templates import CHATML

from bumblecore_core import Dropped, RowError


def test_reasoning_that_the_template_does_not_read_is_an_error_or_dropped():
    message = reply("Yes.", reasoning_content="Because.")
    assert problem(encode(CHATML, QUESTION, message)[1]) == ("BC079", "messages[1].reasoning_content")
    tokenizer, chats = encode(CHATML, QUESTION, message, reasoning="drop")
    assert trained(tokenizer, chats) == ["Yes.<|im_end|>"]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_passed_under_the_name_that_the_template_reads(name):
    template = "{% for m in messages %}" + IM + f"{{% if m.{name} %}}{{{{ '<r>' + m.{name} + '</r>' }}}}{{% endif %}}"
    template += "{{ m.content + '<|im_end|>\\n' }}{% endfor %}" + ASK
    for message in (reply("Yes.", reasoning_content="Because."), reply("<think>\nBecause.\n</think>\n\nYes.")):
        tokenizer, chats = encode(template, QUESTION, message)
        assert trained(tokenizer, chats) == ["<r>Because.</r>Yes.<|im_end|>"]
        tokenizer, chats = encode(template, QUESTION, message, reasoning="drop")
        assert trained(tokenizer, chats) == ["Yes.<|im_end|>"]


def test_inline_reasoning_stays_in_a_content_that_the_template_copies():
    tokenizer, chats = encode(CHATML, QUESTION, reply("<think>Because.</think>Yes."))
    assert trained(tokenizer, chats) == ["<think>Because.</think>Yes.<|im_end|>"]


def test_an_empty_think_block_is_part_of_the_prompt():
    qwen3 = REWRITING[0].template
    tokenizer, chats = encode(qwen3, QUESTION, reply("Yes."))
    assert trained(tokenizer, chats) == ["Yes.<|im_end|>"]
    assert tokenizer.decode(chats[0].input_ids[: chats[0].spans[0][0]]).endswith("<think>\n\n</think>\n\n")


def test_reasoning_after_a_prompt_that_closes_the_think_block_is_an_error():
    qwen3 = REWRITING[0].template
    message = reply("Yes.", reasoning_content="Because.")
    code, field = problem(encode(qwen3, QUESTION, message, template_kwargs={"enable_thinking": False})[1])
    assert (code, field) == ("BC079", "messages[1].reasoning_content")
    assert not isinstance(encode(qwen3, QUESTION, message)[1], RowError)


def test_reasoning_that_the_turn_shows_without_the_tag_of_the_prompt_is_trained_once():
    opening = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    tokenizer, chats = encode(opening, QUESTION, reply("Add.\n</think>\n\n4"))
    assert trained(tokenizer, chats) == ["Add.\n</think>\n\n4<|im_end|>"]


def test_two_reasonings_are_one_or_an_error():
    qwen3 = REWRITING[0].template
    both = reply("<think>\nA\n</think>\n\nB", reasoning_content="A")
    tokenizer, chats = encode(qwen3, QUESTION, both)
    assert trained(tokenizer, chats) == ["<think>\nA\n</think>\n\nB<|im_end|>"]
    other = reply("<think>\nA\n</think>\n\nB", reasoning_content="C")
    for template in (qwen3, CHATML):
        assert problem(encode(template, QUESTION, other)[1]) == ("BC011", "messages[1].reasoning_content")


def test_white_space_is_no_reasoning_and_a_mentioned_tag_is_no_reasoning():
    qwen3 = REWRITING[0].template
    tokenizer, chats = encode(qwen3, QUESTION, reply("Yes.", reasoning_content="  \n "))
    assert trained(tokenizer, chats) == ["Yes.<|im_end|>"]
    said = "The tag </think> closes it."
    for options in ({}, {"reasoning": "drop"}):
        tokenizer, chats = encode(CHATML, QUESTION, reply(said), **options)
        assert trained(tokenizer, chats) == [said + "<|im_end|>"]


def test_a_last_reply_with_the_weight_0_leaves_nothing_to_train_with_train_on_last():
    messages = (QUESTION, reply("First."), QUESTION, reply("Last.", weight=0))
    assert isinstance(encode(CHATML, *messages, train_on="last")[1], Dropped)


def test_a_row_that_is_nested_too_deeply_is_its_own_error():
    deep = {}
    for _ in range(900):
        deep = {"a": deep}
    code, _ = problem(encode(CALLING, QUESTION, reply(tool_calls=[call(what=deep)]))[1])
    assert code in ("BC011", "BC023")


def test_template_arguments_that_transformers_reads_itself_are_refused():
    _, entry = encode(CHATML, QUESTION, reply("Yes."), kwargs={"continue_final_message": True})
    assert problem(entry) == ("BC023", "chat_template_kwargs")


def test_a_mark_that_encloses_the_header_trains_what_follows_the_prompt():
    template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}" + IM
    template += "{{ m.content }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    template += IM + "{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}" + ASK
    tokenizer, chats = encode(template, QUESTION, reply("One."), QUESTION, reply("Two."))
    assert trained(tokenizer, chats) == ["One.<|im_end|>", "Two.<|im_end|>"]
