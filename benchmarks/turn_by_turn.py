"""What a chat template that rewrites history costs: tokens that are computed for conversations trained turn by turn.

    python benchmarks/turn_by_turn.py
    python benchmarks/turn_by_turn.py --turns 5 --rows 200 --reasoning 150

Conversations of made-up words with reasoning in every reply are encoded with a template of Qwen3's shape, which drops
the reasoning of earlier turns. Compared are the tokens of: the conversation rendered once, with all of its reasoning
(which no such model is ever served with, but which is the least that has to be read); one example per conversation with
the common beginning computed once; and one text per turn.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

TEMPLATE = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and (all or loop.index0 > ns.last) %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZER = Path(__file__).parents[1] / "examples" / "quickstart" / "tokenizer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100, help="conversations")
    parser.add_argument("--turns", type=int, default=5, help="questions with their replies in each")
    parser.add_argument("--question", type=int, default=40, help="words of a question, on average")
    parser.add_argument("--reply", type=int, default=120, help="words of a reply, on average")
    parser.add_argument("--reasoning", type=int, default=200, help="words of a reply's reasoning, on average")
    options = parser.parse_args()

    from transformers import AutoTokenizer

    from bumblecore_core import ChatSample, StageContext, TokenExample
    from bumblecore_plugins.stages import SftOptions
    from bumblecore_plugins.stages.sft import sft_stage

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = TEMPLATE
    dice = random.Random(0)
    known = [word.lstrip("Ġ") for word in tokenizer.get_vocab() if word.lstrip("Ġ").isalpha() and len(word) > 3]
    known.sort()

    def words(mean: int) -> str:
        return " ".join(dice.choices(known, k=max(1, round(dice.gauss(mean, mean / 3)))))

    conversations = [
        [
            message
            for _ in range(options.turns)
            for message in (
                {"role": "user", "content": words(options.question)},
                {"role": "assistant", "content": words(options.reply), "reasoning_content": words(options.reasoning)},
            )
        ]
        for _ in range(options.rows)
    ]
    stage = sft_stage(SftOptions(), StageContext(tokenizer=tokenizer, max_length=1 << 20))
    examples = stage.encode(samples=[ChatSample(messages=tuple(one)) for one in conversations])
    joined = [example for example in examples if isinstance(example, TokenExample)]
    joined += [one for several in examples if isinstance(several, list) for one in several]
    once = sum(
        len(tokenizer(tokenizer.apply_chat_template(one, tokenize=False, all=True)).input_ids) for one in conversations
    )
    apart = 0
    for one in conversations:
        for at in range(1, len(one), 2):
            apart += len(tokenizer(tokenizer.apply_chat_template(one[: at + 1], tokenize=False)).input_ids)
    computed, trained = sum(one.length for one in joined), sum(one.count for one in joined)
    print(f"{options.rows} conversations of {options.turns} turns; trained tokens: {trained:,}")
    for name, tokens in (
        ("the conversation rendered once, with all reasoning", once),
        ("computed: one example, the common beginning once", computed),
        ("one text per turn, nothing shared", apart),
    ):
        print(f"{name:52} {tokens:10,} tokens  {tokens / once:5.2f}")


if __name__ == "__main__":
    main()
