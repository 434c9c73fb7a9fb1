"""Pictures of runs, on matplotlib's figure objects alone: no global state, no display, usable in a thread.

Whoever imports this module imports matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bumblecore_core.errors import RunError, one
from bumblecore_core.toolkit.curves import (
    Array,
    Axis,
    distinct_names,
    positions,
    shortened,
    steps_per_epoch,
    with_gaps,
)
from bumblecore_core.toolkit.disk import disk_code
from bumblecore_core.toolkit.drawing import (
    BLUE,
    GREEN,
    GREY,
    PALE_GREY,
    PLAIN,
    PURPLE,
    RAW,
    SMALL,
    SMOOTH,
    VERMILION,
    across_steps,
    count,
    draw_curve,
    draw_evaluations,
    frame,
    frame_rates,
    legend,
    line_style,
    mark_cut,
    number,
    ring_lowest,
)
from bumblecore_core.toolkit.figures import is_core
from bumblecore_core.toolkit.history import RunRecord, series
from bumblecore_core.values import StepEvent

DOTS_PER_INCH = 150
WIDTH = 8.0  # inches: 1200 pixels
FORMATS = (".png", ".svg", ".pdf")
LONGEST_TITLE = 100  # characters
PAIR: Mapping[str, str] = {"chosen": GREEN, "rejected": PURPLE}
SHARES = ("mfu", "data_wait")
LABELS: Mapping[str, str] = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens": "tokens trained on",
    "tokens_per_second": "tokens / s",
    "supervised_tokens_per_second": "supervised tokens / s",
    "steps_per_second": "steps / s",
    "mfu": "MFU (%)",
    "peak_memory_gb": "peak memory (GB)",
    "data_wait": "waiting for data (%)",
    "skipped_steps": "skipped steps",
}
NEEDED = {"tokens": "tokens", "time": "steps_per_second"}
"""x axis → the figure that it is made of."""


def training_figure(events: Sequence[StepEvent], *, smooth: bool, title: str) -> Figure:
    """The loss of one run over its steps, its learning rate, and whatever figures its stage or loss reports.

    With `smooth` the raw curve is pale under `history.smoothed`. Values far outside the others' range are cut off; the
    highest of them is named at the edge. Losses that are not finite leave a gap and a cross.
    """
    panels = _stage_panels(events)
    heights = [3.4, 1.1, *[1.6] * ((len(panels) + 1) // 2)]
    figure = _figure(title, sum(heights) + 0.5)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    loss = figure.add_subplot(grid[0, :])
    rate = figure.add_subplot(grid[1, :], sharex=loss)
    _loss_panel(loss, events, smooth=smooth)
    _rate_strip(rate, events)
    loss.tick_params(labelbottom=False, bottom=False)
    for at, (name, members) in enumerate(panels.items()):
        _stage_panel(figure.add_subplot(grid[2 + at // 2, at % 2]), events, name, members, smooth=smooth)
    return figure


def panels_figure(events: Sequence[StepEvent], names: Sequence[str], *, title: str) -> Figure:
    """A small panel for each of `names` that train events hold; a figure without panels where they hold none."""
    present = [name for name in names if series(events, name)[0]]
    rows = (len(present) + 1) // 2
    figure = _figure(title, 1.7 * rows + 0.5)
    for at, name in enumerate(present):
        axis = figure.add_subplot(rows, 2, at + 1)
        steps, values = with_gaps(events, name)
        values = values * (100 if name in SHARES else 1)
        draw_curve(axis, steps, values, smooth=False, color=BLUE)
        frame(axis, [values], label=LABELS.get(name, name), from_zero=is_core(name))
        across_steps(axis)
        mark_cut(axis, steps, values)
    return figure


def overlay_figure(runs: Sequence[RunRecord], *, x: Axis = "step") -> Figure:
    """The losses of several runs over `x`, raw and smoothed, their evaluations, and below them their learning rates.

    `time` is what `curves.training_seconds` counts. A run that reported no step is left out. Raises `RunError` BC061
    where a run's history lacks the figure that `x` is made of.
    """
    names = distinct_names([run.directory for run in runs])
    lines = [(name, run, *_places(run, x)) for name, run in zip(names, runs, strict=True) if _reported(run)]
    unit, unit_name = _time_unit([places[-1] for *_, places in lines]) if x == "time" else (1.0, "")
    figure = _figure("", 5.0 + 0.2 * len(lines))
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1.1])
    shown: list[Array] = []
    for at, (_, run, steps, places) in enumerate(lines):
        style, where = line_style(at), np.array(places) / unit
        for split in ("train", "eval"):
            found, values = with_gaps(run.events, "loss", split)
            shown.append(values)
            if split == "train":
                draw_curve(loss, np.interp(found, steps, where), values, smooth=True, **style)
            else:
                draw_evaluations(loss, np.interp(found, steps, where), values, style["color"])
        found, values = with_gaps(run.events, _rate_names(run.events)[0])
        draw_curve(rate, np.interp(found, steps, where), values, smooth=False, **style)
    frame(loss, shown, label="loss")
    frame_rates(rate, [line.get_ydata() for line in rate.get_lines()])
    loss.tick_params(labelbottom=False, bottom=False)
    _across(rate, x, unit_name)
    handles = [Line2D([], [], **SMOOTH, **line_style(at)) for at in range(len(lines))]
    labels = [shortened(name, LONGEST_TITLE) for name, *_ in lines]
    if any(event.split == "eval" for _, run, *_ in lines for event in run.events):
        handles.append(Line2D([], [], color=GREY, marker="o", markersize=4, linewidth=0.8))
        labels.append("evaluation")
    columns = max(1, min(len(labels), 120 // (8 + max(map(len, labels), default=0))))
    legend(figure, handles, labels, loc="outside lower left", ncols=columns)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a picture, in the format that the suffix names (.png, .svg, .pdf), so that it is whole or not there.

    Raises `RunError`: BC061 for another suffix, BC042 where it cannot be written, BC045 where the disk is full.
    """
    if path.suffix.lower() not in FORMATS:
        problem = f"'{path.suffix}' is no picture format that can be written"
        raise one(RunError, "BC061", problem, f"Use one of {', '.join(FORMATS)}", place=str(path))
    temporary = path.with_name(f".{path.name}.writing")
    try:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=DOTS_PER_INCH, facecolor="white")
        os.replace(temporary, path)
    except OSError as error:
        problem = f"the picture cannot be written: {error.strerror or error}"
        raise one(RunError, disk_code(error) or "BC042", problem, "Name another place", place=str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _figure(title: str, height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    if title:
        shown = shortened(title, LONGEST_TITLE)
        figure.suptitle(shown, x=0.01, horizontalalignment="left", fontsize=10, color="black", parse_math=False)
    return figure


def _loss_panel(axis: Any, events: Sequence[StepEvent], *, smooth: bool) -> None:
    steps, values = with_gaps(events, "loss")
    evaluated, losses = with_gaps(events, "loss", "eval")
    draw_curve(axis, steps, values, smooth=smooth, color=BLUE)
    handles, labels = [Line2D([], [], color=BLUE, **(RAW if smooth else PLAIN))], ["training"]
    if smooth:
        handles.append(Line2D([], [], color=BLUE, **SMOOTH))
        labels.append("training, smoothed")
    frame(axis, [values, losses], label="loss")
    across_steps(axis, "")
    mark_cut(axis, steps, values)
    if np.isfinite(losses).any():
        handles.append(draw_evaluations(axis, evaluated, losses, VERMILION))
        ring, best = ring_lowest(axis, evaluated, losses)
        handles.append(ring)
        labels += ["evaluation", best]
    if (missing := steps[np.isnan(values)]).size:
        at_the_bottom = {"transform": axis.get_xaxis_transform(), "clip_on": False, "linestyle": "none"}
        handles += axis.plot(missing, 0 * missing + 0.02, marker="x", color="black", markersize=4, **at_the_bottom)
        labels.append(f"not finite ({missing.size:,})")
    if (epoch := steps_per_epoch(events)) is not None:
        top = axis.secondary_xaxis("top", functions=(lambda step: step / epoch, lambda epochs: epochs * epoch))
        top.set_xlabel("epoch", fontsize=SMALL, color=GREY)
        top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        top.tick_params(labelsize=SMALL, colors=GREY)
        top.spines["top"].set_color(PALE_GREY)
    if len(handles) > 1:
        legend(axis, handles, labels, loc="best")


def _rate_strip(axis: Any, events: Sequence[StepEvent]) -> None:
    """One line for each parameter group where they differ, else one."""
    names, drawn = _rate_names(events), []
    for at, name in enumerate(names):
        steps, values = with_gaps(events, name)
        draw_curve(axis, steps, values, smooth=False, **line_style(at))
        drawn.append(values)
    frame_rates(axis, drawn)
    across_steps(axis)
    if len(names) > 1:
        handles = [Line2D([], [], **line_style(at)) for at in range(len(names))]
        legend(axis, handles, [name.removeprefix("learning_rate/") for name in names], loc="best")


def _rate_names(events: Sequence[StepEvent]) -> list[str]:
    groups = {name: None for event in events for name in event.metrics if name.startswith("learning_rate/")}
    return list(groups) or ["learning_rate"]


def _stage_panels(events: Sequence[StepEvent]) -> dict[str, list[str]]:
    """Panel → its figures: one each, but what was chosen and what was rejected together."""
    own = {name: None for event in events for name in event.metrics if not is_core(name)}
    panels: dict[str, list[str]] = {}
    for name in own:
        if series(events, name)[0] or series(events, name, "eval")[0]:
            prefix, _, last = name.rpartition("/")
            panels.setdefault(f"{prefix}: chosen and rejected" if last in PAIR else name, []).append(name)
    return panels


def _stage_panel(axis: Any, events: Sequence[StepEvent], title: str, names: Sequence[str], *, smooth: bool) -> None:
    drawn = []
    for name in names:
        last = name.rpartition("/")[2]
        steps, values = with_gaps(events, name)
        draw_curve(axis, steps, values, smooth=smooth, color=PAIR.get(last, BLUE))
        evaluated, found = with_gaps(events, name, "eval")
        draw_evaluations(axis, evaluated, found, PAIR.get(last, VERMILION))
        drawn += [values, found]
    frame(axis, drawn, label="")
    across_steps(axis)
    axis.set_title(shortened(title.removeprefix(": "), 50), fontsize=SMALL, color=GREY, loc="left", parse_math=False)
    if title.endswith(("accuracy", "accuracies")):
        axis.set_ylim(0, 1)
    if title.endswith("accuracies"):  # of pairs, where a coin gets half
        axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    if len(names) > 1:
        handles = [Line2D([], [], color=PAIR[name.rpartition("/")[2]], **SMOOTH) for name in names]
        legend(axis, handles, [name.rpartition("/")[2] for name in names], loc="best")


def _reported(run: RunRecord) -> bool:
    return any(event.split == "train" for event in run.events)


def _places(run: RunRecord, x: Axis) -> tuple[list[int], list[float]]:
    steps, places = positions(run.events, x)
    if not steps:
        problem = f"the run's history does not hold '{NEEDED[x]}' at every step, which an axis of '{x}' is made of"
        raise one(RunError, "BC061", problem, "Compare over another axis", place=str(run.directory))
    return steps, places


def _time_unit(longest: Sequence[float]) -> tuple[float, str]:
    seconds = max(longest, default=0.0)
    return (3600.0, "h") if seconds >= 7200 else (60.0, "min") if seconds >= 120 else (1.0, "s")


def _across(axis: Any, x: Axis, unit: str) -> None:
    if x == "step":
        across_steps(axis)
        return
    axis.set_xlabel({"tokens": "tokens trained on", "epoch": "epoch", "time": f"time in training steps ({unit})"}[x],
                    fontsize=SMALL, color=GREY)  # fmt: skip
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value) if x == "tokens" else number(value)))
