"""`bumble tokenizer train FILES… -o DIR`: a byte-level BPE tokenizer from data files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bumblecore_core import DataError, ModelError, one
from bumblecore_core.toolkit.outputs import (
    TOKENIZER_OUTPUT,
    check_output_directory,
    force_option,
    write_output_directory,
)
from bumblecore_core.toolkit.regular_files import require_regular
from bumblecore_core.toolkit.terminal import echo
from bumblecore_plugins.commands.generate import SURROGATE

END_OF_TEXT = "<|endoftext|>"
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
SMALLEST_VOCABULARY = 256 + 1 + len(CHATML_TOKENS)
SUFFIXES = (".jsonl", ".json", ".txt", ".csv")
FIELD_LIMIT = 2**31 - 1  # csv's own limit of 128 KiB is too small for documents


@click.group()
def tokenizer() -> None:
    """Work with tokenizers."""


@tokenizer.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--vocab-size",
    type=click.IntRange(min=SMALLEST_VOCABULARY),
    required=True,
    help="Entries, special tokens and the 256 bytes among them.",
)
@click.option(
    "--chat-template",
    default="chatml",
    show_default=True,
    help="chatml, none, or a .jinja file with a template of yours.",
)
@click.option("--special-token", "special", multiple=True, help="A further special token; may be given several times.")
@force_option
def train(
    files: tuple[Path, ...],
    output: Path,
    vocab_size: int,
    chat_template: str,
    special: tuple[str, ...],
    force: bool,
) -> None:
    """Train a byte-level BPE tokenizer on FILES (.jsonl, .json, .csv: every string value in them; .txt).

    Its EOS is <|im_end|> with the chatml template (what closes a turn) and <|endoftext|> otherwise.
    """
    check_output_directory(output, force=force, field="--output")
    if any(map(SURROGATE.search, special)):
        raise one(DataError, "BC020", "a token that is not UTF-8", "write it in UTF-8", field="--special-token")
    template = read_template(chat_template)
    chatml = chat_template == "chatml"
    specials = list(dict.fromkeys([END_OF_TEXT, *(CHATML_TOKENS if chatml else ()), *special]))
    if vocab_size < 256 + len(specials):
        raise click.UsageError(
            f"--vocab-size must be at least {256 + len(specials)}: 256 bytes and the special tokens."
        )
    check_files(files)

    from transformers import PreTrainedTokenizerFast

    backend = train_bpe((text for path in files for text in strings_of(path)), vocab_size, specials)
    trained = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>" if chatml else END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    trained.chat_template = template
    write_output_directory(output, trained.save_pretrained, replaces=TOKENIZER_OUTPUT, field="--output")
    size = len(trained)
    short = "" if size == vocab_size else f" (fewer than {vocab_size}: the files hold no further pairs to merge)"
    echo(f"wrote {output}: {size} entries{short}, EOS {trained.eos_token}, pad {trained.pad_token}")


def train_bpe(texts: Iterator[str], vocab_size: int, specials: Sequence[str]) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer`: every text encodes, decodes to itself, and digits stand alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def read_template(choice: str) -> str | None:
    """The built-in ChatML template, no template, or a file's. Raises `ModelError` BC061."""
    if choice == "none":
        return None
    path = Path(__file__).with_name("chatml.jinja") if choice == "chatml" else Path(choice)
    require_regular(path, ModelError, field="--chat-template")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        problem = "the chat template cannot be read"
        raise one(
            ModelError,
            "BC061",
            problem,
            "name a UTF-8 .jinja file, chatml or none",
            place=choice,
            field="--chat-template",
        ) from error


def check_files(files: Sequence[Path]) -> None:
    """Raises `DataError` BC061 for each file that is missing or of an unknown kind, before anything is read."""
    for path in files:
        if not os.path.isfile(path):  # unlike Path.is_file, false for a name that is too long
            raise one(DataError, "BC061", "no such file", "correct the path", place=str(path))
        if path.suffix.lower() not in SUFFIXES:
            raise one(DataError, "BC061", "a file of an unknown kind", f"use {', '.join(SUFFIXES)}", place=str(path))


def strings_of(path: Path) -> Iterator[str]:
    """Every text in a file, keys left out. Raises `DataError` BC061 (unreadable), BC003 (not UTF-8), BC001 (not
    JSON, with the line) or BC020 (a lone surrogate)."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start}"
        raise one(DataError, "BC003", problem, "save the file as UTF-8", place=str(path)) from error
    except OSError as error:
        raise one(DataError, "BC061", f"cannot be read: {error.strerror}", "correct it", place=str(path)) from error
    kind = path.suffix.lower()
    if kind == ".txt":
        yield from (line for line in content.splitlines(keepends=True) if line.strip())
    elif kind == ".csv":
        csv.field_size_limit(FIELD_LIMIT)
        reader = csv.DictReader(io.StringIO(content))
        try:
            for row in reader:
                yield from _strings(row, str(path))
        except csv.Error as error:
            place = f"{path}:{reader.line_num}"
            raise one(DataError, "BC001", f"malformed CSV: {error}", "correct the row", place=place) from error
    elif kind == ".json":
        yield from _strings(_parsed(content, str(path)), str(path))
    else:
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield from _strings(_parsed(line, f"{path}:{number}"), f"{path}:{number}")


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise one(DataError, "BC001", f"not valid JSON at {where}", "correct the file", place=place) from error
    except RecursionError:
        raise one(DataError, "BC001", "the JSON is nested too deeply", "flatten it", place=place) from None
    except ValueError as error:  # a number of more digits than Python converts
        raise one(DataError, "BC001", f"not valid JSON: {error}", "correct the file", place=place) from error


def _strings(value: Any, place: str) -> Iterator[str]:
    waiting = [value]  # no recursion: what the parser's stack has held may be too deep for ours
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if not value.isascii() and SURROGATE.search(value):
                raise one(DataError, "BC020", "a lone surrogate in a text", "remove it", place=place)
            yield value
        elif isinstance(value, dict | list):
            waiting += reversed(value.values() if isinstance(value, dict) else value)
