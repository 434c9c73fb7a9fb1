"""Parts of conversations in every form: calls, reasoning, weights, special tokens, template arguments, dates."""

from __future__ import annotations

import pytest
from chat_rows import CALLING, QUESTION, TOOL, call, encode, problem, reply, trained
from rewriting_templates import ASK, CALLS, IM, REWRITING
from templates import CHATML, SHAPES

from bumblecore_core import Dropped, RowError

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
    assert problem(entry) == ("BC079", "messages[1].tool_calls[0].arguments.where")
    keys_only = CALLING.replace("c.function | tojson", "c.function.name + (c.function.arguments.where | list | tojson)")
    _, entry = encode(keys_only, QUESTION, reply("where", tool_calls=[call(where={"city": ["Bern"]})]))
    assert problem(entry) == ("BC079", "messages[1].tool_calls[0].arguments.where")


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
    assert kinds_lost(chat) == ["a tool definition", "a system text", "a tool result"]
    _, (chat,) = encode(only_users, QUESTION, reply("Hm."))
    assert chat.warnings == ()


def kinds_lost(chat):
    return [warning.removeprefix("BC080 the chat template does not render ") for warning in chat.warnings]


def test_a_lost_part_of_an_untrained_turn_is_a_warning():
    """The turn with the weight 0 is context: its text and its calls must be there, its reasoning need not."""
    context = reply("I look.", weight=0, tool_calls=[call(what="x", n=7), call(what="y", deep=[{"on": True}])])
    result = {"role": "tool", "content": "42"}
    for template, lost in (
        (CALLING, []),
        (CALLING.replace("c.function | tojson", "c.function | string"), []),  # Python writes `True`
        (CALLING.replace("{{ m.content or '' }}", "{{ '' if m.tool_calls else m.content }}"), ["an assistant text"]),
        (CALLING.replace("c.function | tojson", "c.function.name"), ["a tool call"]),
        (CALLING.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]"), ["a tool call"]),
    ):
        _, (chat,) = encode(template, QUESTION, context, result, reply("It is 42."))
        assert kinds_lost(chat) == lost
    _, (chat,) = encode(
        CALLING, QUESTION, reply("<think>\nHm.\n</think>\n\nOne."), QUESTION, reply("Two."), train_on="last"
    )
    assert kinds_lost(chat) == []


def test_a_lost_parameter_of_a_tool_is_a_warning():
    place = {"type": "object", "properties": {"town": {"type": "string", "description": "Its town."}}}
    listed = {"type": "array", "items": {"anyOf": [place, {"type": "null"}]}}
    parameters = {"type": "object", "properties": {"place": place, "stops": listed}}
    tool = {"type": "function", "function": {**TOOL["function"], "parameters": parameters}}
    head = "{% for t in tools %}{{ t.function.name + t.function.description + %s }}{% endfor %}" + CALLING
    for shown, lost in (
        ("(t.function.parameters | tojson)", []),
        ("(t.function.parameters.properties | list | tojson)", ["a parameter of a tool"]),
        ("(t.function.parameters | tojson) | replace('Its town.', '')", ["a parameter of a tool"]),
        ("''", ["a parameter of a tool"]),
    ):
        _, (chat,) = encode(head.replace("%s", shown), QUESTION, reply("Yes."), tools=(tool,))
        assert kinds_lost(chat) == lost


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
    result = {"role": "tool", "content": "1", "tool_call_id": "abcdefghi"}
    tokenizer, chats = encode(mistral, QUESTION, reply(tool_calls=nine), result, reply("Done."), tools=(TOOL,))
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


# Parts that stand inside other parts


LOOK = {"type": "function", "function": {"name": "look", "arguments": {"what": "x"}}}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (reply("Paris is it.", reasoning_content="Paris"), "reasoning_content"),
        (reply(tool_calls=[call(what="x"), LOOK]), "tool_calls[1]"),
        (reply("True story 12.", tool_calls=[call(a=True)]), "tool_calls[0].arguments.a"),
        (reply("x 12x birds.", tool_calls=[call(a=12)]), "tool_calls[0].arguments.a"),
    ],
)
def test_a_part_inside_another_part_does_not_hide_that_it_is_lost(message, field):
    first = (
        "{% for c in (m.tool_calls or [])[:1] %}{{ ' ' + c.function.name + ' ' + c.function.arguments | join(' ') }}"
    )
    first += "{{ ' ' + c.function.arguments.values() | select('string') | join(' ') }}{% endfor %}"
    template = CALLING.replace(CALLS, first)
    code, found = problem(encode(template, QUESTION, message)[1])
    assert (code, found) == ("BC079", f"messages[1].{field}")


def test_an_empty_mark_does_not_leave_a_call_untrained():
    template = "{% for m in messages %}" + IM + "{% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}"
    template += (
        "{% endgeneration %}" + CALLS + "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}" + ASK
    )
    result = {"role": "tool", "content": "42"}
    tokenizer, chats = encode(template, QUESTION, reply(tool_calls=[call(what="x")]), result, reply("Done."))
    assert ['"what": "x"' in text for text in trained(tokenizer, chats)] == [True, False]


def test_results_go_to_the_calls_that_they_name():
    template = CALLING.replace("{{ m.content or '' }}", "{{ (m.tool_call_id or '') + '=' + (m.content or '') }}")
    calls = [{**call(what=name), "id": name} for name in ("c1", "c2")]
    results = [
        {"role": "tool", "content": text, "tool_call_id": name} for name, text in (("zz", "unknown"), ("c1", "one"))
    ]
    tokenizer, chats = encode(template, QUESTION, reply(tool_calls=calls), *results, reply("Done."))
    text = tokenizer.decode(chats[-1].input_ids)
    assert "zz=unknown" in text
    assert "c1=one" in text
