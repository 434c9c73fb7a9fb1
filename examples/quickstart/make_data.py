"""Writes the quickstart's corpus, fine-tuning rows, preference pairs and tokenizer: the same bytes each time.

    python examples/quickstart/make_data.py            # rewrite data/ and tokenizer/ beside this script
    python examples/quickstart/make_data.py --check    # say whether what lies there is what the script makes

The pretraining corpus states every fact in several phrasings. The fine-tuning rows ask about three quarters of them,
drawn by topic; the held-out file asks about the rest. So a right answer there takes both stages: what is true was
read in pretraining, how to answer was learned in fine-tuning. Most answers of fine-tuning end with a filler, and the
preference pairs, about the same three quarters, are an answer without it (chosen) and with it (rejected). The held-out
file holds such pairs too, so it serves as questions and as pairs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from topics import GREETINGS, Question, Topic, animals, calendar, countries, numbers, words

HERE = Path(__file__).resolve().parent
SEED = 2024
PASSES = 21  # how often the corpus states each fact, each time in a phrasing drawn anew
HEADINGS = ("About {}:", "Now {}.", "Let us look at {}.", "Here is what we know of {}.")
HELD_OUT_SHARE = 0.25
CONVERSATION_TURNS = (1, 1, 2, 3)  # drawn from; a turn is a question and its answer
ASKED_TIMES = 4  # how often fine-tuning asks each question, each time in a phrasing drawn anew
FILLED_TIMES = 3  # how often of these the answer goes on after what was asked
FILLER = " I hope this helps!"
VOCABULARY = 2432
END_OF_TURN, END_OF_TEXT, START_OF_TURN = "<|im_end|>", "<|endoftext|>", "<|im_start|>"

# the template that `bumble tokenizer train` writes
CHAT_TEMPLATE = resources.files("bumblecore_plugins.commands").joinpath("chatml.jinja").read_text(encoding="utf-8")


def split(topics: list[Topic], rng: random.Random) -> tuple[list[Topic], list[Topic]]:
    """(asked in fine-tuning, held out): whole topics, the same share of each kind."""
    asked: list[Topic] = []
    held_out: list[Topic] = []
    for kind in dict.fromkeys(topic.kind for topic in topics):
        of_kind = [topic for topic in topics if topic.kind == kind]
        rng.shuffle(of_kind)
        cut = round(len(of_kind) * HELD_OUT_SHARE)
        held_out += of_kind[:cut]
        asked += of_kind[cut:]
    return asked, held_out


def corpus_rows(topics: list[Topic], rng: random.Random) -> Iterable[dict[str, str]]:
    """Entries, a sentence a line, in an order drawn anew for each pass over the world."""
    for _ in range(PASSES):
        of_pass = [entry for topic in topics for entry in topic.entries]
        rng.shuffle(of_pass)
        for entry in of_pass:
            sentences = [rng.choice(phrasings) for phrasings in rng.sample(entry.facts, len(entry.facts))]
            yield {"text": "\n".join([rng.choice(HEADINGS).format(entry.heading), *sentences])}


def chat_rows(questions: list[Question], rng: random.Random) -> Iterable[dict[str, object]]:
    """Conversations of one or more questions, as OpenAI messages."""
    asked = [
        (question.prompts, question.answer + (FILLER if time < FILLED_TIMES else ""))
        for question in questions
        for time in range(ASKED_TIMES)
    ]
    asked += [(question.prompts, question.answer) for question in GREETINGS for _ in range(5 * ASKED_TIMES)]
    rng.shuffle(asked)
    while asked:
        messages: list[dict[str, str]] = []
        for prompts, answer in asked[: rng.choice(CONVERSATION_TURNS)]:
            messages.append({"role": "user", "content": rng.choice(prompts)})
            messages.append({"role": "assistant", "content": answer})
        del asked[: len(messages) // 2]
        yield {"messages": messages}


def pair_rows(topics: list[Topic], rng: random.Random) -> Iterable[dict[str, str]]:
    """Preference pairs, one for each question: the answer alone is preferred to the same one with the filler."""
    for topic in topics:
        for question in topic.questions:
            prompt = rng.choice(question.prompts)
            yield {
                "kind": topic.kind,
                "prompt": prompt,
                "chosen": question.answer,
                "rejected": question.answer + FILLER,
            }


def build() -> dict[str, list[dict[str, object]]]:
    """The rows of each file in data/."""
    rng = random.Random(SEED)
    topics = [*countries(), *animals(), *words(), *calendar(), *numbers()]
    asked, held_out = split(topics, rng)
    return {
        "heldout": list(pair_rows(held_out, rng)),
        "sft": list(chat_rows([question for topic in asked for question in topic.questions], rng)),
        "corpus": list(corpus_rows(topics, rng)),
        "pairs": list(pair_rows(asked, rng)),
    }


def train_tokenizer(texts: list[str], folder: Path) -> None:
    """A byte-level BPE tokenizer whose digits stand alone, saved as `AutoTokenizer` reads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [END_OF_TEXT, START_OF_TURN, END_OF_TURN]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [START_OF_TURN],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write(folder: Path) -> None:
    """Everything, below `folder`."""
    files = build()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    texts = [row["text"] for row in files["corpus"]]
    texts += [message["content"] for row in files["sft"] for message in row["messages"]]
    train_tokenizer(texts, folder / "tokenizer")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the quickstart's data and tokenizer.")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write (default: beside this script)")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the files beside this script differ"
    )
    options = parser.parse_args()
    if not options.check:
        write(options.out)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        write(Path(fresh))
        made = [path.relative_to(fresh) for path in sorted(Path(fresh).rglob("*")) if path.is_file()]
        differing = [str(path) for path in made if (HERE / path).read_bytes() != (Path(fresh) / path).read_bytes()]
    print("\n".join(f"differs: {path}" for path in differing) or f"{len(made)} files are as the script makes them")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
