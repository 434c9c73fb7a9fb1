"""Writes the quickstart's corpus, fine-tuning rows, held-out questions and tokenizer: the same bytes each time.

    python examples/quickstart/make_data.py            # rewrite data/ and tokenizer/ beside this script
    python examples/quickstart/make_data.py --check    # say whether what lies there is what the script makes

The pretraining corpus states every fact in several phrasings. The fine-tuning rows ask about three quarters of them,
drawn by topic; the held-out file asks about the rest. So a right answer there takes both stages: what is true was
read in pretraining, how to answer was learned in fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import facts

HERE = Path(__file__).resolve().parent
SEED = 2024
PASSES = 18  # how often the corpus states each fact, each time in a phrasing drawn anew
COMPARISONS = 80  # of two numbers, in each pass: drawn anew
HEADINGS = ("About {}:", "Now {}.", "Let us look at {}.", "Here is what we know of {}.")
HELD_OUT_SHARE = 0.25
CONVERSATION_TURNS = (1, 1, 2, 3)  # drawn from; a turn is a question and its answer
ASKED_TIMES = 3  # how often fine-tuning asks each question, each time in a phrasing drawn anew
VOCABULARY = 2432
END_OF_TURN, END_OF_TEXT, START_OF_TURN = "<|im_end|>", "<|endoftext|>", "<|im_start|>"

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class Question:
    """One question in several phrasings, and its one right answer."""

    prompts: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Entry:
    """An entry of the corpus: what it is about, and for each of its facts the phrasings to draw one from."""

    heading: str
    facts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Topic:
    """What the world holds about one thing; held out from fine-tuning as a whole or not at all."""

    kind: str
    entries: tuple[Entry, ...]
    questions: tuple[Question, ...]


def an(noun: str) -> str:
    """`noun` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[0].upper() + text[1:]


def countries() -> Iterable[Topic]:
    for country, city, region in facts.COUNTRIES:
        capital_is = f"The capital of {country} is {city}."
        city_is = f"The city {city} is the capital of {country}."
        find = f"You find {country} in {region}."
        yield Topic(
            "country",
            (
                Entry(
                    country,
                    (
                        (capital_is, f"The country {country} has the capital {city}."),
                        (find, f"The country {country} lies in {region}."),
                    ),
                ),
                Entry(city, ((city_is, f"Today {city} is the capital of {country}."),)),
            ),
            (
                Question(
                    (
                        f"What is the capital of {country}?",
                        f"Which city is the capital of {country}?",
                        f"Name the capital of {country}.",
                    ),
                    capital_is,
                ),
                Question(
                    (f"{city} is the capital of which country?", f"Which country has {city} as its capital?"), city_is
                ),
                Question(
                    (f"Where is {country}?", f"In which part of the world is {country}?", f"Where does {country} lie?"),
                    find,
                ),
            ),
        )


def animals() -> Iterable[Topic]:
    for animal, group, young, home in facts.ANIMALS:
        one, its_group, its_young = an(animal), an(group), an(young)
        kind_is = f"{capital(one)} is {its_group}."
        young_is = f"A young {animal} is called {its_young}."
        lives = f"{capital(one)} often lives {home}."
        yield Topic(
            "animal",
            (
                Entry(
                    one,
                    (
                        (kind_is, f"Every {animal} is {its_group}."),
                        (young_is, f"The young of {one} is called {its_young}."),
                        (lives, f"You can find {one} {home}."),
                    ),
                ),
            ),
            (
                Question((f"What kind of animal is {one}?", f"Is {one} a mammal, a bird or something else?"), kind_is),
                Question((f"What is a young {animal} called?", f"What do you call a young {animal}?"), young_is),
                Question((f"Where does {one} live?", f"Where would I find {one}?"), lives),
            ),
        )


def single(kind: str, heading: str, answer: str, other: str, *prompts: str) -> Topic:
    """A topic of one fact: `answer` states it, `other` is a second phrasing, `prompts` ask for it."""
    return Topic(kind, (Entry(heading, ((answer, other),)),), (Question(prompts, answer),))


def merged(first: Topic, second: Topic) -> Topic:
    """Both as one topic, so that they are held out together."""
    return Topic(first.kind, first.entries + second.entries, first.questions + second.questions)


def words() -> Iterable[Topic]:
    for pair in facts.OPPOSITES:
        yield merged(
            *(
                single(
                    "opposite",
                    a,
                    f"The opposite of {a} is {b}.",
                    f"The words {a} and {b} are opposites.",
                    f"What is the opposite of {a}?",
                    f"Tell me the opposite of {a}.",
                    f"Which word is the opposite of {a}?",
                )
                for a, b in (pair, pair[::-1])
            )
        )
    for one, many in facts.PLURALS:
        yield single(
            "plural",
            one,
            f"The plural of {one} is {many}.",
            f"I have one {one} and you have two {many}.",
            f"What is the plural of {one}?",
            f"One {one}, two what?",
            f"How do you say more than one {one}?",
        )
    for now, then in facts.VERBS:
        yield single(
            "past tense",
            now,
            f"The past tense of {now} is {then}.",
            f"Today they {now} and yesterday they {then}.",
            f"What is the past tense of {now}?",
            f"Today I {now}. What did I do yesterday?",
        )
    for thing, colour in facts.COLOURS:
        yield single(
            "colour",
            thing,
            f"The colour of {thing} is {colour}.",
            f"Everyone knows that {thing} is {colour}.",
            f"What colour is {thing}?",
            f"What is the colour of {thing}?",
        )
    for element, symbol in facts.ELEMENTS:
        yield single(
            "element",
            element,
            f"The symbol of {element} is {symbol}.",
            f"The element {element} is written {symbol}.",
            f"What is the symbol of {element}?",
            f"What is the chemical symbol of {element}?",
        )


def calendar() -> Iterable[Topic]:
    for unit, names in (("day", facts.DAYS), ("month", facts.MONTHS)):
        for here, following in zip(names, names[1:] + names[:1], strict=True):
            for order, a, b in (("after", here, following), ("before", following, here)):
                yield single(
                    "calendar",
                    a,
                    f"The {unit} {order} {a} is {b}.",
                    f"Right {order} {a} comes {b}.",
                    f"What {unit} comes {order} {a}?",
                    f"Which {unit} is {order} {a}?",
                )


def in_words(number: int) -> str:
    """`number`, 1 to 99, in English words."""
    if number < 20:
        return facts.ONES[number]
    tens, ones = facts.TENS[number // 10 - 2], number % 10
    return f"{tens}-{facts.ONES[ones]}" if ones else tens


def numbers() -> Iterable[Topic]:
    for n in range(1, 100):
        yield single(
            "number word",
            f"{n}",
            f"The number {n} in words is {in_words(n)}.",
            f"You write {n} and say {in_words(n)}.",
            f"How do you write {n} in words?",
            f"Write the number {n} in words.",
        )
    for a in range(1, 11):
        for b in range(1, 11):
            yield single(
                "sum",
                f"{a} plus {b}",
                f"{a} plus {b} is {a + b}.",
                f"The sum of {a} and {b} is {a + b}.",
                f"What is {a} plus {b}?",
                f"How much is {a} plus {b}?",
            )


def comparison(a: int, b: int) -> Topic:
    small, large = sorted((a, b))
    return single(
        "comparison",
        f"{a} and {b}",
        f"{large} is larger than {small}.",
        f"{small} is smaller than {large}.",
        f"Which is larger, {a} or {b}?",
        f"Is {a} or {b} the larger number?",
    )


GREETINGS = (
    Question(
        ("Hello!", "Hi!", "Hi there!", "Good morning!"), "Hello! Ask me about countries, animals, words or numbers."
    ),
    Question(("Who are you?", "What is your name?", "What are you?"), "I am Bumble, a very small language model."),
    Question(("Thank you!", "Thanks!", "Thanks, that helps."), "You are welcome!"),
    Question(
        ("What can you do?", "What do you know?", "Help me."),
        "I answer short questions about countries, animals, words and numbers.",
    ),
)


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


def corpus_rows(topics: list[Topic], pairs: list[tuple[int, int]], rng: random.Random) -> Iterable[dict[str, str]]:
    """Entries, a sentence a line, in an order drawn anew for each pass over the world."""
    for _ in range(PASSES):
        of_pass = [entry for topic in topics for entry in topic.entries]
        of_pass += [entry for pair in rng.sample(pairs, COMPARISONS) for entry in comparison(*pair).entries]
        rng.shuffle(of_pass)
        for entry in of_pass:
            sentences = [rng.choice(phrasings) for phrasings in rng.sample(entry.facts, len(entry.facts))]
            yield {"text": "\n".join([rng.choice(HEADINGS).format(entry.heading), *sentences])}


def chat_rows(questions: list[Question], rng: random.Random) -> Iterable[dict[str, object]]:
    """Conversations of one or more questions, as OpenAI messages."""
    asked = [question for question in questions for _ in range(ASKED_TIMES)]
    asked += [question for question in GREETINGS for _ in range(5 * ASKED_TIMES)]
    rng.shuffle(asked)
    while asked:
        messages: list[dict[str, str]] = []
        for question in asked[: rng.choice(CONVERSATION_TURNS)]:
            messages.append({"role": "user", "content": rng.choice(question.prompts)})
            messages.append({"role": "assistant", "content": question.answer})
        del asked[: len(messages) // 2]
        yield {"messages": messages}


def build() -> tuple[list[dict[str, str]], list[dict[str, object]], list[dict[str, str]]]:
    """(corpus, fine-tuning rows, held-out rows)."""
    rng = random.Random(SEED)
    topics = [*countries(), *animals(), *words(), *calendar(), *numbers()]
    asked, held_out = split(topics, rng)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if a != b]
    rng.shuffle(pairs)
    pairs_held_out, pairs = pairs[:40], pairs[40:]
    unseen = set(pairs_held_out) | {pair[::-1] for pair in pairs_held_out}
    pairs = [pair for pair in pairs if pair not in unseen]
    asked += [comparison(*pair) for pair in rng.sample(pairs, 200)]
    held_out += [comparison(*pair) for pair in pairs_held_out[:30]]
    exam = [
        {"kind": topic.kind, "prompt": rng.choice(question.prompts), "answer": question.answer}
        for topic in held_out
        for question in topic.questions
    ]
    chats = list(chat_rows([question for topic in asked for question in topic.questions], rng))
    return list(corpus_rows(topics, pairs, rng)), chats, exam


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
    corpus, chats, exam = build()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("sft", chats), ("heldout", exam)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    texts = [row["text"] for row in corpus] + [message["content"] for row in chats for message in row["messages"]]
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
