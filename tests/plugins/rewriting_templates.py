"""Chat templates of the shapes that reasoning and tool models come with, many of which rewrite earlier turns.

Written for the tests. `SHAPES` maps a name to (template, what it can express); `can` holds words of `PARTS`.
"""

from __future__ import annotations

from dataclasses import dataclass

IM = "{{ '<|im_start|>' + m.role + '\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
)
CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '\\n<tool_call>\\n' + c.function | tojson + '\\n</tool_call>' }}{% endfor %}"
)
LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
RESULT = (
    "{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
)


@dataclass(frozen=True)
class Rewriting:
    """`can`: which parts the template expresses when it serves; `name`: for messages."""

    name: str
    template: str
    can: frozenset[str]
    specials: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    eos: str = "<|im_end|>"


def _shape(name: str, template: str, *can: str, **options: object) -> Rewriting:
    return Rewriting(name, template, frozenset(can), **options)  # type: ignore[arg-type]


REWRITING = [
    _shape(  # drops the reasoning of earlier turns, adds an empty think block to the last one (Qwen3)
        "qwen3_like",
        TOOLS
        + LAST_USER
        + "{% for m in messages %}"
        + RESULT
        + "{% elif m.role == 'assistant' %}{% set content = m.content or '' %}"
        "{% set thought = m.reasoning_content or '' %}{{ '<|im_start|>assistant\\n' }}"
        "{% if loop.index0 > ns.last and (loop.last or thought) %}"
        "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}{{ content.lstrip('\\n') }}"
        + CALLS
        + "{{ '<|im_end|>\\n' }}{% else %}"
        + IM
        + "{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        + ASK
        + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
        "system", "reasoning", "calls", "parallel", "text with call",
    ),
    _shape(  # the generation prompt opens the think tag, the history has none (DeepSeek-R1)
        "r1_like",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<|user|>' + m.content }}"
        "{% else %}{{ '<|assistant|>' + m.content.split('</think>')[-1].lstrip() + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}",
        "system", "reasoning",
        specials=("<|user|>", "<|assistant|>"), eos="<|eos|>",
    ),
    _shape(  # the last turn ends otherwise than those before it, reasoning under another name (gpt-oss)
        "gptoss_like",
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% if m.thinking and (loop.last or m.tool_calls) %}"
        "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
        "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
        "{{ '<|start|>assistant to=functions.' + f.name + '<|channel|>commentary json<|message|>' }}"
        "{{ f.arguments | tojson + '<|call|>' }}"
        "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}"
        "{% elif m.role == 'tool' %}{{ '<|start|>functions<|message|>' + m.content + '<|end|>' }}"
        "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
        "{% if loop.first and tools %}{{ tools | tojson }}{% endif %}{{ '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        "system", "reasoning", "calls",
        specials=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"), eos="<|return|>",
    ),
    _shape(  # keeps everything
        "keeping",
        TOOLS
        + "{% for m in messages %}"
        + RESULT
        + "{% else %}"
        + IM
        + "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
        "{{ m.content or '' }}" + CALLS + "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}" + ASK,
        "system", "reasoning", "calls", "parallel", "text with call",
    ),
    _shape(  # ids of nine characters, the system text before the last user (Mistral)
        "mistral_like",
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
        "{% if tools and loop.first %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{{ '[INST]' + (system + '\\n\\n' if system is defined and loop.last else '') + m.content + '[/INST]' }}"
        "{% elif m.tool_calls is defined %}{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}"
        "{% if c.id is undefined or c.id | length != 9 %}{{ raise_exception('ids of nine characters') }}{% endif %}"
        "{{ (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' + ('' if loop.last else ', ') }}{% endfor %}"
        "{{ ']' + eos_token }}{% elif m.role == 'tool' %}"
        "{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids of nine characters') }}{% endif %}"
        "{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        "system", "calls", "parallel",
        specials=("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
        eos="</s>",
    ),
    _shape(  # joins arguments as text, wants null content beside calls (DeepSeek-V3)
        "text_arguments",
        "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.role == 'system' %}"
        "{{ m.content }}{% elif m.role == 'user' %}{{ '<|user|>' + m.content }}{% elif m.role == 'tool' %}"
        "{{ '<|result|>' + m.content + '<|result_end|>' }}{% elif m.content is none %}{{ '<|assistant|>' }}"
        "{% for c in m.tool_calls %}{{ '<|call|>' + c.function.name + '\\n' + c.function.arguments + '<|call_end|>' }}"
        "{% endfor %}{{ eos_token }}{% else %}{{ '<|assistant|>' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        "system", "calls", "parallel",
        specials=("<|user|>", "<|assistant|>", "<|call|>", "<|call_end|>", "<|result|>", "<|result_end|>"),
        eos="<|eos|>",
    ),
]  # fmt: skip
