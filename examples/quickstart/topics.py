"""What the quickstart's almanac says and how it is asked: facts turned into entries and questions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import facts


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
                    (
                        f"Which country has the capital {city}?",
                        f"Which country has {city} as its capital?",
                        f"Of which country is {city} the capital?",
                    ),
                    city_is,
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
                Question((f"What kind of animal is {one}?", f"Which class of animal is {one}?"), kind_is),
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
            f"Tell me the plural of {one}.",
            f"Which word is the plural of {one}?",
        )
    for now, then in facts.VERBS:
        yield single(
            "past tense",
            now,
            f"The past tense of {now} is {then}.",
            f"Today they {now} and yesterday they {then}.",
            f"What is the past tense of {now}?",
            f"Give me the past tense of {now}.",
        )
    for thing, colour in facts.COLOURS:
        yield single(
            "colour",
            thing,
            f"The colour of {thing} is {colour}.",
            f"When you think of {thing}, you think of {colour}.",
            f"Tell me the colour of {thing}.",
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
            yield single(
                "calendar",
                here,
                f"The {unit} after {here} is {following}.",
                f"Right after {here} comes {following}.",
                f"What {unit} comes after {here}?",
                f"Which {unit} is after {here}?",
            )


def in_words(number: int) -> str:
    """`number`, 1 to 99, in English words."""
    if number < 20:
        return facts.ONES[number]
    tens, ones = facts.TENS[number // 10 - 2], number % 10
    return f"{tens}-{facts.ONES[ones]}" if ones else tens


def numbers() -> Iterable[Topic]:
    for n in range(10, 100):
        yield single(
            "number word",
            f"{n}",
            f"The number {n} in words is {in_words(n)}.",
            f"You write {n} and say {in_words(n)}.",
            f"How do you write {n} in words?",
            f"Write the number {n} in words.",
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
