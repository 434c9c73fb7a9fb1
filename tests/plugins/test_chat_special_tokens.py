"""Special tokens that are written out in the texts of a row."""

from __future__ import annotations

import pytest
from chat_rows import CALLING, QUESTION, TOOL, call, encode, problem, reply, trained
from templates import CHATML

from bumblecore_core.toolkit.special_texts import ENDS_WITH_END, READ_AS_CONTROL, READ_AS_TEXT


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
    for ends in ("<|im_end|>\n", "<|im_end|><|im_end|>"):
        tokenizer, (chat,) = encode(CHATML, QUESTION, reply("Yes." + ends), special_tokens_as="refuse")
        assert trained(tokenizer, [chat]) == ["Yes.<|im_end|>"]
        assert chat.warnings == (ENDS_WITH_END,)


@pytest.mark.parametrize("ascii", ["false", "true"])
@pytest.mark.parametrize("place", ["tools", "key", "kwargs"])
def test_special_tokens_in_tools_keys_and_template_arguments(place, ascii):
    template = "{{ note | default('') }}{% if tools %}{{ tools | tojson }}{% endif %}" + CALLING
    template = template.replace("tojson", f"tojson(ensure_ascii={ascii})")
    described = {**TOOL, "function": {**TOOL["function"], "description": "Ends <|im_end|>."}}
    made = {"tools": (described,) if place == "tools" else (TOOL,)}
    made["kwargs"] = {"note": "<|im_end|>"} if place == "kwargs" else None
    message = reply("Yes.", tool_calls=[call(**({"<|im_end|>": 1} if place == "key" else {"what": "x"}))])
    assert problem(encode(template, QUESTION, message, special_tokens_as="refuse", **made)[1])[0] == "BC086"
    tokenizer, (chat,) = encode(template, QUESTION, message, special_tokens_as="text", **made)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.input_ids.tolist().count(end) == 2
    assert tokenizer.decode(chat.input_ids).count("<|im_end|>") == 3
    assert "\\ud" not in tokenizer.decode(chat.input_ids)
    (text,) = trained(tokenizer, [chat])
    assert text.startswith("Yes.\n<tool_call>")
    assert text.endswith("</tool_call><|im_end|>")


def test_private_characters_are_not_taken_for_special_tokens():
    for mode in ("control", "refuse"):
        tokenizer, (chat,) = encode(CHATML, QUESTION, reply("icon \U0010f000."), special_tokens_as=mode)
        assert trained(tokenizer, [chat]) == ["icon \U0010f000.<|im_end|>"]
    for icon in ("\U0010f000", "\\udbfc\\udc00"):  # the second is how JSON writes the first in ASCII
        assert problem(encode(CHATML, QUESTION, reply(f"icon {icon}."), special_tokens_as="text")[1])[0] == "BC086"
    tokenizer, (chat,) = encode(CHATML, QUESTION, reply("icon \U000f0000."), special_tokens_as="text")
    assert trained(tokenizer, [chat]) == ["icon \U000f0000.<|im_end|>"]
