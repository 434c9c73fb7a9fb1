"""Chat templates of the shapes that models come with, each with a hand-written account of what the model says in them.

`Shape.said(message)` is the oracle: the exact text that must be trained for an assistant message, written by hand, not
derived from the template. `Shape.header` is what must stand, untrained, right before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The old lighthouse keeper counted seven ships before the fog rolled in.",
    "How many apples are left?\n\nThere are three apples and two pears.",
    "def add(a, b):\n    return a + b\n",
    "user assistant system tool model You are a helpful assistant. Response: Instruction:",
    "Grüße aus Köln, naïve café — 你好, 世界! Привет 😀",
    "  indented text, then  two spaces  and\ta tab",
]
CHARACTERS = sorted(set("".join(SENTENCES)) | set(map(chr, range(32, 127))))

# Unicode's White_Space, which tokenizers strip by; Python's str.strip also takes \x1c to \x1f.
WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A template and its oracle. `specials`: its special tokens; `system`, `tools`: whether it takes such turns."""

    name: str
    template: str
    eos: str
    header: str
    said: Callable[[dict[str, Any]], str]
    specials: tuple[str, ...] = ()
    bos: str | None = None
    swallows: bool = False
    system: bool = True
    tools: bool = False


def plain(before: str, after: str, *, trim: bool = False) -> Callable[[dict[str, Any]], str]:
    return lambda message: before + (message["content"].strip() if trim else message["content"]) + after


def hermes(message: dict[str, Any]) -> str:
    calls = [
        "\n<tool_call>\n" + json.dumps(call["function"], ensure_ascii=False) + "\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    return (message.get("content") or "") + "".join(calls) + "<|im_end|>"


def mistral(message: dict[str, Any]) -> str:
    if calls := message.get("tool_calls"):
        return "[TOOL_CALLS] " + json.dumps([call["function"] for call in calls], ensure_ascii=False) + "</s>"
    return " " + message["content"] + "</s>"


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")

SHAPES = [
    Shape(
        name="chatml", template=CHATML, eos="<|im_end|>", specials=IM, header="<|im_start|>assistant\n",
        said=plain("", "<|im_end|>"),
    ),
    Shape(
        name="chatml_default_system",
        template="{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}"
        "{% endif %}"
        + CHATML,
        eos="<|im_end|>", specials=IM, header="<|im_start|>assistant\n", said=plain("", "<|im_end|>"),
    ),
    Shape(
        name="llama2",
        template="{% if messages[0].role == 'system' %}"
        "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate user and assistant') }}{% endif %}"
        "{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        eos="</s>", bos="<s>", header=" [/INST]", said=plain(" ", " </s>", trim=True),
    ),
    Shape(
        name="llama3",
        template="{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
        " + m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        eos="<|end_of_text|>", bos="<|begin_of_text|>",
        specials=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        header="<|start_header_id|>assistant<|end_header_id|>\n\n", said=plain("", "<|eot_id|>", trim=True),
    ),
    Shape(
        name="mistral_tools",
        template="{{ bos_token }}{% if tools %}"
        "{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
        "{% elif m.tool_calls is defined %}"
        "{% set ns = namespace(calls=[]) %}{% for c in m.tool_calls %}"
        "{% set ns.calls = ns.calls + [c.function] %}{% endfor %}"
        "{{ '[TOOL_CALLS] ' + ns.calls | tojson + eos_token }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}{% endfor %}",
        eos="</s>", bos="<s>",
        specials=(
            "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        header="]", said=mistral, system=False, tools=True,
    ),
    Shape(
        name="gemma",
        template="{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
        " + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        eos="<eos>", bos="<bos>", specials=("<start_of_turn>", "<end_of_turn>"), header="<start_of_turn>model\n",
        said=plain("", "<end_of_turn>", trim=True), system=False,
    ),
    Shape(
        name="phi",
        template="{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        eos="<|endoftext|>", specials=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), header="<|assistant|>\n",
        said=plain("", "<|end|>\n<|endoftext|>"),
    ),
    Shape(
        name="phi_swallowing",  # its added tokens take in the white space after them
        template="{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        eos="<|endoftext|>", specials=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), header="<|assistant|>",
        said=lambda message: message["content"].lstrip(WHITE_SPACE) + "<|end|>", swallows=True,
    ),
    Shape(
        name="zephyr",
        template="{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        eos="</s>", header="<|assistant|>\n", said=plain("", "</s>"),
    ),
    Shape(
        name="alpaca",
        template="{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}{% elif m.role == 'user' %}"
        "{{ '### Instruction:\n' + m.content + '\n\n' }}{% else %}"
        "{{ '### Response:\n' + m.content + eos_token + '\n\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
        eos="</s>", header="### Response:\n", said=plain("", "</s>"),
    ),
    Shape(
        name="deepseek",
        template="{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}"
        "{{ '<｜Assistant｜>' + m.content + eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
        eos="<｜end_of_sentence｜>", bos="<｜begin_of_sentence｜>", specials=("<｜User｜>", "<｜Assistant｜>"),
        header="<｜Assistant｜>", said=plain("", "<｜end_of_sentence｜>"),
    ),
    Shape(
        name="generation_marks",
        template="{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        eos="<|im_end|>", specials=IM, header="<|im_start|>assistant\n", said=plain("", "<|im_end|>"),
    ),
    Shape(
        name="hermes_tools",
        template="{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
        "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
        "{{ '\n<tool_call>\n' + c.function | tojson + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        eos="<|im_end|>", specials=IM, header="<|im_start|>assistant\n", said=hermes, tools=True,
    ),
    Shape(
        name="no_generation_prompt",  # asked without a header, so the header is the model's to write
        template="{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}",
        eos="<|im_end|>", specials=IM, header="<|im_end|>\n", said=plain("<|im_start|>assistant\n", "<|im_end|>"),
    ),
]  # fmt: skip

DROPS_REASONING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 < ns.last %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS_BEFORE_LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if loop.index0 == ns.last and tools %}{{ 'TOOLS' + tools | tojson }}"
    "{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKS_IN_MACRO = (
    "{% macro turn(m) %}{{ '<|im_start|>' + m.role + '\n' }}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}"
)


@cache
def trained(kind: str) -> str:
    """A small tokenizer trained on `SENTENCES`, serialized: `bytes` (byte-level BPE), `gpt4` (the same with the newline
    pattern of newer models), `metaspace` (Unigram)."""
    if kind == "metaspace":
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
        raw.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=500,
            show_progress=False,
            unk_token="<unk>",
            special_tokens=["<unk>"],
            initial_alphabet=CHARACTERS,
        )
        raw.train_from_iterator([*SENTENCES, *CHARACTERS] * 4, trainer)
        return raw.to_str()
    raw = Tokenizer(models.BPE())
    if kind == "gpt4":
        pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
    else:
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([*SENTENCES, "\n\n", "   ", "\n\n\n"] * 4, trainer)
    return raw.to_str()


def tokenizer_for(shape: Shape, kind: str = "bytes", template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of that kind with the shape's special tokens and template."""
    raw = Tokenizer.from_str(trained(kind))
    names = [*shape.specials, shape.eos, *([shape.bos] if shape.bos else [])]
    raw.add_special_tokens([AddedToken(name, rstrip=shape.swallows, special=True) for name in dict.fromkeys(names)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=raw.get_added_tokens_decoder()[raw.token_to_id(shape.eos)]
    )
    if shape.bos:
        tokenizer.bos_token = shape.bos
    tokenizer.chat_template = shape.template if template is None else template
    return tokenizer
