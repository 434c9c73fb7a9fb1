"""`bumble compare RUN…`: the figures of several runs, where their configs differ, and their curves in one picture."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click

from bumblecore_core import BumbleError, Problem, RunError, one
from bumblecore_core.toolkit.csv_cells import csv_cell
from bumblecore_core.toolkit.curves import distinct_names, shortened, training_seconds
from bumblecore_core.toolkit.history import RunRecord, read_run, smoothed
from bumblecore_core.toolkit.outputs import check_output_file, force_option, write_output_file
from bumblecore_core.toolkit.terminal import echo

MISSING = "-"
LONGEST_VALUE = 48  # characters of a config value in the table
LEFT_OUT = ("output_dir", "loggers")
"""Config sections that differ and tell nothing of the training."""


class Figures(NamedTuple):
    """What is known of a run; None for what is not. `loss`: the end of the smoothed curve; `best_loss`: the lowest of
    the evaluations, after `best_step`; `tokens_per_second`: the median of what was reported after the first event;
    `peak_memory_gb`: 10⁹ bytes; `seconds`: spent in training steps, evaluation and saving left out."""

    run: str
    stage: str | None
    status: str | None
    steps: int | None
    epochs: float | None
    loss: float | None
    best_loss: float | None
    best_step: int | None
    tokens_per_second: float | None
    peak_memory_gb: float | None
    seconds: float | None


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("compare.png"),
    show_default=True,
    help="Picture to write: .png, .svg or .pdf.",
)
@click.option(
    "--x",
    type=click.Choice(["step", "tokens", "epoch", "time"]),
    default="step",
    show_default=True,
    help="What the curves are drawn over; time is that in training steps.",
)
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
@force_option
def compare(runs: tuple[Path, ...], output: Path, x: Any, table: Path | None, force: bool) -> None:
    """Compare runs, each named by its output directory, in figures, config and curves.

    Prints a table of figures and one of the config keys that differ, and draws the losses into one picture. The final
    loss is the end of the smoothed curve, tokens/s a median; the training time is that of the steps, without evaluation
    and saving.
    """
    check_output_file(output, force=force, field="--output")
    if table is not None:
        check_output_file(table, force=force, field="--csv")
    records = read_runs(runs)
    names = distinct_names([record.directory for record in records])
    figures = [figures_of(record, name) for record, name in zip(records, names, strict=True)]

    from bumblecore_core.toolkit.plots import overlay_figure, write_figure

    drawn = any(found.steps is not None for found in figures)
    if drawn:
        write_figure(overlay_figure(records, x=x), output)
    if table is not None:
        write_csv(table, figures)

    print_table([HEADER, *(row(found) for found in figures)])
    if len(records) > 1:
        rows = differing(records)
        echo()
        print_table([("config", *names), *rows]) if rows else echo("the configs do not differ")
    echo()
    echo(f"wrote {output}" if drawn else "no step was reported: there is no curve to draw")
    if table is not None:
        echo(f"wrote {table}")


def read_runs(directories: Sequence[Path]) -> list[RunRecord]:
    """What each run left. Raises `RunError` with all that is wrong: what `read_run` says, or BC039 for a run that is
    named twice."""
    records: list[RunRecord] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for directory in directories:
        place = os.path.realpath(directory)
        try:
            if place in seen:
                raise one(RunError, "BC039", "the run is named twice", "Name each run once", place=str(directory))
            seen.add(place)
            records.append(read_run(directory))
        except BumbleError as error:
            problems += error.problems
    if problems:
        raise RunError(problems)
    return records


def figures_of(record: RunRecord, name: str) -> Figures:
    """The figures of a run, from its history."""
    train = [event for event in record.events if event.split == "train"]
    losses = record.series("loss")[1]
    evaluations = list(zip(*record.series("loss", "eval"), strict=True))
    best_step, best_loss = min(evaluations, key=lambda found: found[1]) if evaluations else (None, None)
    rates = record.series("tokens_per_second")[1]
    seconds = training_seconds(record.events)[1]
    return Figures(
        run=name,
        stage=_stage(record),
        status=record.status if record.info else None,
        steps=train[-1].step if train else None,
        epochs=train[-1].epoch if train else None,
        loss=smoothed(losses)[-1] if losses else None,
        best_loss=best_loss,
        best_step=best_step,
        tokens_per_second=median(rates[1:]) if rates[1:] else None,
        peak_memory_gb=max(record.series("peak_memory_gb")[1], default=None),
        seconds=seconds[-1] if seconds else None,
    )


HEADER = (
    "run", "stage", "status", "steps", "epochs", "final loss", "best evaluation loss", "tokens/s", "peak memory",
    "training time",
)  # fmt: skip


def row(found: Figures) -> tuple[str, ...]:
    """A run's line of the table."""
    best = None if found.best_loss is None else f"{found.best_loss:.4f} @ {found.best_step:,}"
    return (
        found.run,
        found.stage or MISSING,
        found.status or MISSING,
        _shown(found.steps, ","),
        _shown(found.epochs, ".2f"),
        _shown(found.loss, ".4f"),
        best or MISSING,
        _shown(found.tokens_per_second, ",.0f"),
        MISSING if found.peak_memory_gb is None else f"{found.peak_memory_gb:.2f} GB",
        MISSING if found.seconds is None else duration(found.seconds),
    )


def differing(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """Config keys whose values are not the same in all runs, each with every run's value."""
    configs = [dict(flat(record.config)) for record in records]
    keys = dict.fromkeys(key for config in configs for key in config)
    kept = [key for key in keys if key.partition(".")[0] not in LEFT_OUT]
    rows = [(key, *(config.get(key, MISSING) for config in configs)) for key in kept]
    return [
        (key, *(shortened(value, LONGEST_VALUE) for value in values)) for key, *values in rows if len(set(values)) > 1
    ]


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """(dotted key, value as text) of everything in a config; sections in lists are numbered."""
    if isinstance(value, Mapping):
        parts = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        parts = [(str(at), item) for at, item in enumerate(value)]
    else:
        text = ", ".join(map(_text, value)) if isinstance(value, list) and value else _text(value)
        return [(path, " ".join(text.split()))]
    return [found for key, item in parts for found in flat(item, f"{path}.{key}" if path else key)]


def duration(seconds: float) -> str:
    """`4.2 s`, `3:07 min` or `12:03:07 h`."""
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def write_csv(path: Path, figures: Sequence[Figures]) -> None:
    """The figures, unrounded, a run a line. Raises `RunError` BC042 or BC045."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Figures._fields)
    writer.writerows(map(csv_cell, found) for found in figures)
    write_output_file(path, text.getvalue().encode("utf-8", "backslashreplace"), field="--csv")


def _stage(record: RunRecord) -> str | None:
    """As `run.info.json` says, or the config."""
    found = record.info.get("stage") or record.config.get("stage")
    if isinstance(found, Mapping):
        found = found.get("name")
    return None if found is None else str(found)


def _text(value: Any) -> str:
    """As YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: float | None, form: str) -> str:
    return MISSING if value is None or not math.isfinite(value) else format(value, form)
