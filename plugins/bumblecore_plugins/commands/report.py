"""`bumble report RUN`: one HTML page about a run that needs no other file, no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from bumblecore_core import RunError, one
from bumblecore_core.toolkit.history import RunRecord, read_run
from bumblecore_core.toolkit.outputs import check_output_file, force_option, write_output_file
from bumblecore_core.toolkit.terminal import echo

LONGEST_ANSWER = 128
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
@force_option
def report(run: Path, output: Path | None, prompts: tuple[str, ...], force: bool) -> None:
    """Write one HTML page about RUN, the output directory of a run: curves, figures, checkpoints, configuration.

    The page needs no other file and no network. It can be written while the run goes on.
    """
    from bumblecore_plugins.commands.report_parts import bytes_shown

    record = read_run(run)
    target = run / "report.html" if output is None else output
    check_output_file(target, force=force, field="--output")
    page = render(record, answers(record, prompts) if prompts else [])
    write_output_file(target, page, field="--output")
    echo(f"wrote {target} ({bytes_shown(len(page))})")


def answers(record: RunRecord, prompts: Sequence[str]) -> list[Answer]:
    """What the run's final model says, greedily and as such text was trained: as a chat's reply where the stage and the
    tokenizer know chats. One prompt at a time, so that no answer depends on another.

    Raises `ModelError` BC064 where there is no final model, and what `bumble generate` raises.
    """
    from bumblecore_core.toolkit.tokenizers import load_tokenizer, resolve_model_dir
    from bumblecore_plugins.commands.decoding import Sampling, continuations
    from bumblecore_plugins.commands.generate import encode_prompts, load_model, stop_ids

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
