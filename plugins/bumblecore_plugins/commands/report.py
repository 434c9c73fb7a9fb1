"""`bumble report RUN`: one HTML page about a run that needs no other file, no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click

from bumblecore_core import RunError, one
from bumblecore_core.toolkit.history import RunRecord, read_run

LONGEST_ANSWER = 128
BEGINNING = b"<!doctype html>"
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, which HTML does not allow, to the signs that stand for them."""


class Answer(NamedTuple):
    """What the model said to a prompt. `finished`: it ended by itself."""

    prompt: str
    text: str
    finished: bool


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: RUN/report.html]")
@click.option("--prompt", "prompts", multiple=True, help="Ask the final model this; may be given several times.")
def report(run: Path, output: Path | None, prompts: tuple[str, ...]) -> None:
    """Write one HTML page about RUN, the output directory of a run: curves, figures, checkpoints, configuration.

    The page needs no other file and no network. It can be written while the run goes on.
    """
    from bumblecore_plugins.commands.report_parts import bytes_shown

    record = read_run(run)
    target = run / "report.html" if output is None else output
    check_target(target)
    page = render(record, answers(record, prompts) if prompts else [])
    write_page(target, page)
    click.echo(f"wrote {target} ({bytes_shown(len(page))})")


def answers(record: RunRecord, prompts: Sequence[str]) -> list[Answer]:
    """What the run's final model says, greedily and as such text was trained: as a chat's reply where the stage and the
    tokenizer know chats. One prompt at a time, so that no answer depends on another.

    Raises `ModelError` BC064 where there is no final model, and what `bumble generate` raises.
    """
    from bumblecore_core.toolkit.tokenizers import load_tokenizer, resolve_model_dir
    from bumblecore_plugins.commands.generate import Sampling, continuations, encode_prompts, load_model, stop_ids

    directory = resolve_model_dir(record.directory)
    tokenizer = load_tokenizer(directory)
    chat = bool(tokenizer.chat_template) and record.info.get("reads") != "text"
    encoded = encode_prompts(tokenizer, prompts, chat=chat, system=None)
    model = load_model(directory, False)
    stop = tuple(stop_ids(tokenizer, model, chat=chat))
    # Nothing is padded in batches of one; transformers wants an id all the same.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0] if stop else 0
    sampling = Sampling(max_new_tokens=LONGEST_ANSWER, temperature=0.0, top_p=1.0, stop=stop, pad=pad)
    found = []
    for prompt, ids in zip(prompts, continuations(model, encoded, sampling, 1), strict=True):
        finished = bool(ids) and ids[-1] in stop
        text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
        found.append(Answer(prompt=prompt, text=text, finished=finished))
    return found


def render(record: RunRecord, asked: Sequence[Answer]) -> bytes:
    """The page in UTF-8. The same files give the same bytes.

    Raises `RunError` BC064 where `run.info.json`, `run.lock.json` or the history hold something else than a run writes.
    """
    import jinja2

    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.from_string(source).render(asked=asked, longest_answer=LONGEST_ANSWER, **_content(record))
    # A lone surrogate, which a JSON file can hold, has no bytes in UTF-8.
    return html.translate(CONTROLS).encode("utf-8", "replace")


def _content(record: RunRecord) -> dict[str, Any]:
    from bumblecore_plugins.commands.report_charts import charts
    from bumblecore_plugins.commands.report_parts import parts

    try:
        found = parts(record)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, OSError) as error:
        problem = f"a file of the run does not hold what a run writes there ({type(error).__name__}: {error})"
        raise one(RunError, "BC064", problem, "Train the run again", place=str(record.directory)) from error
    return {**found, "charts": charts(record)}


def check_target(path: Path) -> None:
    """Raises `RunError` where no page can be written to `path`, before there is one: BC042, or BC069 where something
    lies there that is no HTML page."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # a device must not be replaced either
            raise _unwritable(path, "something else than a file lies here")
        if not path.parent.is_dir():
            raise _unwritable(path, "there is no such directory")
        if path.is_file() and not _is_page(path):
            problem, fix = "a file lies here that is no HTML page", "Name another file with --output"
            raise one(RunError, "BC069", problem, fix, place=str(path))
    except OSError as error:
        raise _unwritable(path, f"the page cannot be written: {error.strerror}") from error


def write_page(path: Path, page: bytes) -> None:
    """Replaces `path` atomically. Raises `RunError` BC042 where it cannot be written."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_bytes(page)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _unwritable(path, f"the page cannot be written: {error.strerror}") from error


def _unwritable(path: Path, problem: str) -> Exception:
    return one(RunError, "BC042", problem, "Name another file with --output", place=str(path))


def _is_page(path: Path) -> bool:
    with path.open("rb") as opened:
        beginning = opened.read(len(BEGINNING))
    return beginning.lower() == BEGINNING or not beginning
