"""What chat encoding refuses, drops and warns of, each by its code and place."""

from __future__ import annotations

import pickle

import pytest
from templates import (
    CHATML,
    DROPS_REASONING,
    MARKS_IN_MACRO,
    SHAPES,
    TOOLS_BEFORE_LAST_USER,
    tokenizer_for,
)

from bumblecore_core import ChatSample, Dropped, ModelError, RowError
from bumblecore_core.toolkit.chat import ChatEncoder, encode_chats
from bumblecore_core.toolkit.templates import ChatTemplate

BY_NAME = {shape.name: shape for shape in SHAPES}
CHATML_SHAPE = BY_NAME["chatml"]
SECRET = "zqsecretzq"


def chat(*turns: tuple[str, str], tools=None) -> ChatSample:
    return ChatSample(messages=tuple({"role": role, "content": content} for role, content in turns), tools=tools)


def encode(template: str | None, *turns, shape=CHATML_SHAPE, kind="bytes", tools=None, **options):
    (entry,) = encode_chats(tokenizer_for(shape, kind, template), [chat(*turns, tools=tools)], **options)
    if isinstance(entry, RowError):
        assert SECRET not in str(entry.at("rows.json:7"))
        assert str(entry.at("rows.json:7")).startswith(f"{entry.problem.code} rows.json:7 {entry.problem.field}: ")
    return entry


TWO_TURNS = (
    ("user", f"a {SECRET}"),
    ("assistant", f"<think>hm {SECRET}</think>\nfirst"),
    ("user", "b"),
    ("assistant", "<think>so</think>\nsecond"),
)


def test_tokenizer_without_template_names_the_config_key():  # row 22
    tokenizer = tokenizer_for(CHATML_SHAPE)
    tokenizer.chat_template = None
    with pytest.raises(ModelError) as caught:
        ChatEncoder(tokenizer)
    assert caught.value.problems[0].code == "BC022"
    assert "model.chat_template" in str(caught.value)


def test_template_that_raises_says_what_it_said():  # row 23
    entry = encode(None, ("user", "a"), ("user", SECRET), ("assistant", "b"), shape=BY_NAME["llama2"])
    assert entry.problem.code == "BC023"
    assert "Roles must alternate user and assistant" in str(entry.problem)
    entry = encode(None, ("system", SECRET), ("user", "a"), ("assistant", "b"), shape=BY_NAME["gemma"])
    assert "System role not supported" in str(entry.problem)


def test_what_a_template_quotes_of_a_row_is_left_out():  # row 23
    template = "{% if messages | length > 1 %}"
    template += "{{ raise_exception('Bad turn: ' + messages[0].content + ' before ' + messages[1].content) }}"
    template += "{% endif %}"
    entry = encode(template, ("user", f"a {SECRET}"), ("assistant", f"a {SECRET} twice"))
    assert "Bad turn: … before …" in entry.problem.problem


def test_a_template_error_that_is_no_jinja_error():  # row 23
    entry = encode("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", ("user", SECRET), ("assistant", "b"))
    assert entry.problem.code == "BC023"


def test_template_that_strips_earlier_reasoning_is_refused_for_all():  # row 24
    entry = encode(DROPS_REASONING, *TWO_TURNS)
    assert (entry.problem.code, entry.problem.field) == ("BC024", "messages[1]")
    tokenizer = tokenizer_for(CHATML_SHAPE, template=DROPS_REASONING)
    first = tokenizer.apply_chat_template([{"role": "user", "content": TWO_TURNS[0][1]}], add_generation_prompt=True)
    assert f"token {len(first['input_ids'])} is " in entry.problem.problem  # the first token of the reply
    assert "stage.train_on: last" in entry.problem.fix


def test_template_that_strips_earlier_reasoning_is_taken_for_the_last_turn():
    entry = encode(DROPS_REASONING, *TWO_TURNS, train_on="last")
    tokenizer = tokenizer_for(CHATML_SHAPE, template=DROPS_REASONING)
    ((start, end),) = entry.spans
    assert tokenizer.decode(entry.input_ids[start:end]) == "<think>so</think>\nsecond<|im_end|>"
    assert SECRET in tokenizer.decode(entry.input_ids[:start])
    assert "hm" not in tokenizer.decode(entry.input_ids[:start])


def test_marks_make_a_rewriting_template_trainable():  # row 24: "unless the marks are there"
    marked = DROPS_REASONING.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    entry = encode(marked, ("user", "a"), ("assistant", "one"))
    assert not isinstance(entry, RowError)


def test_a_generation_prompt_that_is_no_header_of_a_turn_is_refused():  # row 24
    template = CHATML.replace("assistant\n", "bot\n")
    entry = encode(template, ("user", f"a {SECRET}"), ("assistant", "one"))
    assert (entry.problem.code, entry.problem.field) == ("BC024", "messages[1]")
    assert "what comes before this turn" in entry.problem.problem


CLOSES_THE_LAST_TURN = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% if loop.last %}{{ '<|im_end|>' }}{% endif %}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_a_special_token_that_closes_the_last_turn_alone():
    """Without marks the end of the first reply moves; with marks it is found, and is not a special token."""
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    unmarked = CLOSES_THE_LAST_TURN.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    entry = encode(unmarked, *turns)
    assert (entry.problem.code, entry.problem.field) == ("BC024", "messages[1]")
    for marked_turns, warned in ((turns, ["BC025"]), (turns[:2], [])):
        warnings = encode(CLOSES_THE_LAST_TURN, *marked_turns).warnings
        assert [warning.split()[0] for warning in warnings] == warned


def test_tools_that_move_with_the_last_user_turn_are_refused():
    tools = ({"type": "function", "function": {"name": "f"}},)
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    entry = encode(TOOLS_BEFORE_LAST_USER, *turns, tools=tools)
    assert (entry.problem.code, entry.problem.field) == ("BC024", "messages[1]")
    assert not isinstance(encode(TOOLS_BEFORE_LAST_USER, *turns, tools=tools, train_on="last"), RowError)
    assert not isinstance(encode(TOOLS_BEFORE_LAST_USER, *turns), RowError)


def test_a_token_across_the_boundary_that_cannot_be_cut_is_refused():
    # "[/INST] " ends in a space that Metaspace joins with the reply's first word; cut there, it would double.
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST] ' }}{% else %}"
    template += "{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    turns = (("user", "hi"), ("assistant", "apples are there."))
    entry = encode(template, *turns, kind="metaspace")
    assert (entry.problem.code, entry.problem.field) == ("BC024", "messages[1]")
    assert not isinstance(encode(template, *turns, kind="bytes"), RowError)


def test_marks_inside_a_macro_are_refused_at_once():
    with pytest.raises(ModelError) as caught:
        ChatEncoder(tokenizer_for(CHATML_SHAPE, template=MARKS_IN_MACRO))
    assert caught.value.problems[0].code == "BC024"


def test_trimmed_offsets_do_not_hide_a_token_across_the_boundary():
    # Byte-level post-processors leave a token's leading space out of its offsets: " There" would look like "There".
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    plain = tokenizer_for(CHATML_SHAPE)
    backend = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trimming = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    template = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    trimming.chat_template = plain.chat_template = template
    sample = chat(("user", "hi"), ("assistant", "apples are there."))
    assert encode_chats(trimming, [sample])[0].spans == encode_chats(plain, [sample])[0].spans


def test_empty_reply_is_dropped_or_an_error():  # row 15
    for content in ("", "  \n"):
        turns = (("user", "a"), ("assistant", content), ("user", "b"), ("assistant", "c"))
        entry = encode(CHATML, *turns)
        assert isinstance(entry, Dropped)
        assert entry.code == "BC015"
        strict = encode(CHATML, *turns, strict=True)
        assert (strict.problem.code, strict.problem.field) == ("BC015", "messages[1].content")
        assert not isinstance(encode(CHATML, *turns, train_on="last", strict=True), Dropped | RowError)


def test_no_assistant_turn_is_dropped():
    entry = encode(CHATML, ("user", "a"))
    assert isinstance(entry, Dropped)
    assert entry.code == "BC066"


def test_lone_surrogate_is_that_rows_error_alone():  # row 20
    good = chat(("user", "a"), ("assistant", "b"))
    entries = encode_chats(tokenizer_for(CHATML_SHAPE), [good, chat(("user", "\ud800"), ("assistant", "b")), good])
    assert entries[1].problem.code == "BC020"
    assert entries[0].spans == entries[2].spans


def test_turn_without_a_closing_special_token_is_warned_of():  # row 25
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    entry = encode(template, ("user", "a"), ("assistant", "b"))
    assert [warning.split()[0] for warning in entry.warnings] == ["BC025"]
    assert encode(CHATML, ("user", "a"), ("assistant", "b")).warnings == ()
    unclosed = BY_NAME["generation_marks"].template.replace(
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}"
    )
    assert encode(unclosed, ("user", "a"), ("assistant", "b")).warnings == entry.warnings


def test_closing_ids_of_a_template():
    expected = {
        "chatml": ["<|im_end|>"],
        "llama3": ["<|end_of_text|>", "<|eot_id|>"],
        "phi": ["<|endoftext|>", "<|end|>"],
    }
    for name, tokens in expected.items():
        tokenizer = tokenizer_for(BY_NAME[name])
        ids = ChatTemplate(tokenizer).end_of_turn_ids()
        assert sorted(ids) == sorted(tokenizer.convert_tokens_to_ids(token) for token in tokens)


def test_encoder_pickles():
    encoder = pickle.loads(pickle.dumps(ChatEncoder(tokenizer_for(CHATML_SHAPE))))
    assert encoder([chat(("user", "a"), ("assistant", "b"))])[0].spans


def test_named_templates_without_a_default():
    tokenizer = tokenizer_for(CHATML_SHAPE)
    tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(ModelError) as caught:
        ChatEncoder(tokenizer)
    assert caught.value.problems[0].code == "BC022"
