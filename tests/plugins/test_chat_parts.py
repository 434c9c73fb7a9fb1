"""Parts of conversations in every form: calls, reasoning, weights, special tokens, template arguments, dates."""

from __future__ import annotations

import pytest
from rewriting_templates import ASK, CALLS, IM, REWRITING
from templates import CHATML, SHAPES, tokenizer_for

from bumblecore_core import ChatSample, Dropped, RowError
from bumblecore_core.toolkit.chat import ChatEncoder
from bumblecore_core.toolkit.special_texts import ENDS_WITH_END, READ_AS_CONTROL, READ_AS_TEXT

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


# What is lost


def test_a_call_that_the_template_does_not_render_is_an_error():
    for message in (reply(tool_calls=[call(what="x")]), reply("Let me see.", tool_calls=[call(what="x")])):
        _, entry = encode(CHATML, QUESTION, message, tools=(TOOL,))
        assert problem(entry) == ("BC079", "messages[1].tool_calls[0]")


def test_a_second_call_that_the_template_does_not_render_is_an_error():
    first_only = CALLING.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
    two = [call(what="one"), call(what="two")]
    assert problem(encode(first_only, QUESTION, reply(tool_calls=two))[1])[0] == "BC079"
    same = [call(what="one"), call(what="one")]
    assert problem(encode(first_only, QUESTION, reply(tool_calls=same))[1]) == ("BC079", "messages[1].tool_calls[1]")
    tokenizer, chats = encode(CALLING, QUESTION, reply(tool_calls=two))
    (text,) = trained(tokenizer, chats)
    assert '{"what": "one"}' in text
    assert '{"what": "two"}' in text


def test_an_argument_that_the_template_does_not_render_is_an_error():
    names_only = CALLING.replace("c.function | tojson", "c.function.name")
    _, entry = encode(names_only, QUESTION, reply(tool_calls=[call(where={"city": ["Bern"]})]))
    assert problem(entry) == ("BC079", "messages[1].tool_calls[0].arguments.where.city[0]")


def test_text_next_to_a_call_that_the_template_drops_is_an_error():
    dropping = CALLING.replace("{{ m.content or '' }}", "{{ '' if m.tool_calls else m.content }}")
    assert problem(encode(dropping, QUESTION, reply("I look.", tool_calls=[call(what="x")]))[1]) == (
        "BC079",
        "messages[1].content",
    )
    assert not isinstance(encode(dropping, QUESTION, reply(tool_calls=[call(what="x")]))[1], RowError)


def test_lost_context_is_a_warning_for_each_kind():
    only_users = "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}" + IM
    only_users += "{{ m.content }}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}" + ASK
    system, result = {"role": "system", "content": "Be brief."}, {"role": "tool", "content": "42"}
    _, (chat,) = encode(only_users, system, QUESTION, reply("Hm."), result, reply("It is."), tools=(TOOL,))
    assert [warning.removeprefix("BC080 the chat template does not render ") for warning in chat.warnings] == [
        "a tool definition",
        "a system text",
        "a tool result",
    ]
    _, (chat,) = encode(only_users, QUESTION, reply("Hm."))
    assert chat.warnings == ()


# Reasoning


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


# Template arguments and dates


def test_template_arguments_of_all_rows_and_of_one():
    template = "{{ mood | default('none') }}" + CHATML
    for options, kwargs, expected in (
        ({}, None, "none"),
        ({"template_kwargs": {"mood": "glad"}}, None, "glad"),
        ({"template_kwargs": {"mood": "glad"}}, {"mood": "sad"}, "sad"),
    ):
        tokenizer, (chat,) = encode(template, QUESTION, reply("Yes."), kwargs=kwargs, **options)
        assert tokenizer.decode(chat.input_ids).startswith(f"{expected}<|im_start|>")


def test_a_template_prints_the_day_that_is_set():
    template = "{{ strftime_now('%d %B %Y') }}{{ strftime_now(\"%Y\") }}" + CHATML
    tokenizer, (chat,) = encode(template, QUESTION, reply("Yes."), date="2024-02-29")
    assert tokenizer.decode(chat.input_ids).startswith("29 February 20242024<|im_start|>")


# Forms


def test_arguments_are_passed_as_the_template_needs_them():
    joined = CALLING.replace("c.function | tojson", "c.function.name + ' ' + c.function.arguments")
    tokenizer, chats = encode(joined, QUESTION, reply(tool_calls=[call(what="Köln")]))
    assert '<tool_call>\nlook_up {"what": "Köln"}\n</tool_call>' in trained(tokenizer, chats)[0]
    listed = CALLING.replace(
        "c.function | tojson", "c.function.name }}{% for k, v in c.function.arguments.items() %}{{ k + '=' + v"
    ).replace("{{ k + '=' + v + '", "{{ k + '=' + v }}{% endfor %}{{ '")
    tokenizer, chats = encode(listed, QUESTION, reply(tool_calls=[call(what="Köln")]))
    assert "look_upwhat=Köln" in trained(tokenizer, chats)[0]


def test_code_as_arguments_is_passed_as_it_is():
    code = {"type": "function", "function": {"name": "python", "arguments": "print('a b')"}}
    tokenizer, chats = encode(CALLING, QUESTION, reply(tool_calls=[code]))
    assert "print('a b')" in trained(tokenizer, chats)[0]


def test_content_as_parts():
    template = "{% for m in messages %}" + IM + "{% for part in m.content %}{{ part.text }}{% endfor %}"
    template += "{{ '<|im_end|>\\n' }}{% endfor %}" + ASK
    tokenizer, chats = encode(template, QUESTION, reply("Yes."))
    assert trained(tokenizer, chats) == ["Yes.<|im_end|>"]
    assert "What?" in tokenizer.decode(chats[0].input_ids)
    part = "{% for part in m.content %}{{ part.text }}{% endfor %}"
    marked = template.replace(part, "{% generation %}" + part + "{% endgeneration %}")
    tokenizer, chats = encode(marked, reply("Yes."), QUESTION, reply("No."))
    assert trained(tokenizer, chats)[-1:] == ["No."]


def test_ids_of_calls_and_results_agree():
    mistral = next(shape for shape in REWRITING if shape.name == "mistral_like").template
    result_with_id = mistral.replace(
        "{{ '[TOOL_RESULTS]' + m.content", "{{ '[TOOL_RESULTS]' + m.tool_call_id + m.content"
    )
    calls = [{**call(what="one"), "id": "a"}, {**call(what="two"), "id": "b"}]
    results = [
        {"role": "tool", "content": "2", "tool_call_id": "b"},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
    ]
    tokenizer, chats = encode(
        result_with_id, QUESTION, reply(tool_calls=calls), *results, reply("Done."), tools=(TOOL,)
    )
    text = tokenizer.decode(chats[0].input_ids)
    assert '"what": "one"}, "id": "call00000"}' in text
    assert "[TOOL_RESULTS]call000012[/TOOL_RESULTS][TOOL_RESULTS]call000001[/TOOL_RESULTS]" in text
    nine = [{**call(what="one"), "id": "abcdefghi"}]
    tokenizer, chats = encode(mistral, QUESTION, reply(tool_calls=nine), results[0], reply("Done."), tools=(TOOL,))
    assert '"id": "abcdefghi"' in tokenizer.decode(chats[0].input_ids)


# Weights


def test_messages_with_the_weight_0_are_context_only():
    messages = (QUESTION, reply("Bad.", weight=0), QUESTION, reply("Good.", weight=0.25), QUESTION, reply("Best."))
    tokenizer, (chat,) = encode(CHATML, *messages)
    assert trained(tokenizer, [chat]) == ["Good.<|im_end|>", "Best.<|im_end|>"]
    assert chat.weights == (0.25, 1.0)
    assert "Bad." in tokenizer.decode(chat.input_ids)
    marked = next(shape for shape in SHAPES if shape.name == "generation_marks").template
    tokenizer, (chat,) = encode(marked, *messages)
    assert (trained(tokenizer, [chat]), chat.weights) == (["Good.<|im_end|>", "Best.<|im_end|>"], (0.25, 1.0))
    tokenizer, chats = encode(REWRITING[0].template, *messages)
    assert [chat.weights for chat in chats] == [(0.25,), ()]
    assert trained(tokenizer, chats) == ["Good.<|im_end|>", "Best.<|im_end|>"]
    assert isinstance(encode(CHATML, QUESTION, reply("Bad.", weight=0))[1], Dropped)


# Special tokens in texts


def test_special_tokens_in_a_text():
    asked = {"role": "user", "content": "What is <|im_end|> for?"}
    tokenizer, (chat,) = encode(CHATML, asked, reply("It ends."))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.warnings == (READ_AS_CONTROL,)
    assert chat.input_ids.tolist().count(end) == 3
    tokenizer, (chat,) = encode(CHATML, asked, reply("<|im_start|> begins."), special_tokens_as="text")
    assert chat.warnings == (READ_AS_TEXT,)
    assert chat.input_ids.tolist().count(end) == 2
    assert tokenizer.decode(chat.input_ids) == (
        "<|im_start|>user\nWhat is <|im_end|> for?<|im_end|>\n<|im_start|>assistant\n<|im_start|> begins.<|im_end|>\n"
    )
    assert trained(tokenizer, [chat]) == ["<|im_start|> begins.<|im_end|>"]
    for options in ({"special_tokens_as": "refuse"}, {"strict": True}):
        assert problem(encode(CHATML, asked, reply("It."), **options)[1]) == ("BC086", "messages[0]")
    for mode in ("control", "text", "refuse"):
        _, (chat,) = encode(CHATML, QUESTION, reply("Plain."), special_tokens_as=mode)
        assert chat.warnings == ()


def test_a_reply_that_ends_with_the_end_of_turn_token_trains_it_once():
    tokenizer, (chat,) = encode(CHATML, QUESTION, reply("Yes.<|im_end|>\n"), special_tokens_as="refuse")
    assert trained(tokenizer, [chat]) == ["Yes.<|im_end|>"]
    assert chat.warnings == (ENDS_WITH_END,)
