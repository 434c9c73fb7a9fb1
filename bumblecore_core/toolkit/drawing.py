"""How a curve, its evaluations, its axes and its legend are drawn, on one matplotlib axes object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bumblecore_core.toolkit.curves import Array, limits, shortened, thinned
from bumblecore_core.toolkit.history import smoothed

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito's palette those that colour-blind readers tell apart on white."""
BLUE, VERMILION, GREEN, PURPLE = COLOURS[:4]
DASHES = ("-", "--", ":", "-.")
GREY, PALE_GREY = "#555555", "#bbbbbb"
SMALL = 8  # points
LONGEST_LABEL = 30  # characters beside a small panel
FEW_POINTS = 30  # so few are marked each
MANY_EVALUATIONS = 60
RAW: Mapping[str, Any] = {"linewidth": 0.8, "alpha": 0.35}
PLAIN: Mapping[str, Any] = {"linewidth": 1.0}
SMOOTH: Mapping[str, Any] = {"linewidth": 1.6}


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th of several curves."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def draw_curve(axis: Any, x: Array, y: Array, *, smooth: bool, **style: Any) -> None:
    """The curve; with `smooth` pale, under its exponential average over the values that are finite."""
    style |= {"marker": "o", "markersize": 3} if len(y) <= FEW_POINTS else {}
    axis.plot(*thinned(x, y), **(RAW if smooth else PLAIN), **style)
    if smooth:
        known = np.isfinite(y)
        axis.plot(*thinned(x[known], np.array(smoothed(y[known].tolist()))), **SMOOTH, **style)


def draw_evaluations(axis: Any, x: Array, y: Array, colour: str) -> Line2D:
    """Points joined by a thin line."""
    size = 4 if len(y) <= MANY_EVALUATIONS else 2
    (line,) = axis.plot(x, y, color=colour, marker="o", markersize=size, linewidth=0.8, markeredgecolor="white",
                        markeredgewidth=0.5, zorder=3)  # fmt: skip
    return line  # type: ignore[no-any-return]


def ring_lowest(axis: Any, x: Array, y: Array) -> tuple[Line2D, str]:
    """A ring around the lowest point; the ring and what a legend says of it."""
    at = int(np.nanargmin(y))
    style = {"color": VERMILION, "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.2}
    (ring,) = axis.plot(x[at : at + 1], y[at : at + 1], "o", zorder=4, **style)
    return ring, f"best: {y[at]:.4f} at step {x[at]:,.0f}"


def frame(axis: Any, curves: Sequence[Array], *, label: str, from_zero: bool = False) -> None:
    """Spines, grid and y axis, whose range shows every curve (see `curves.limits`) and a little below the lowest, or
    begins with 0."""
    found = [range_ for curve in curves if (range_ := limits(curve)) is not None]
    if found:
        low, high = min(low for low, _ in found), max(high for _, high in found)
        low = min(0.0, low) if from_zero else low
        span = (high - low) or abs(high) / 10 or 1.0
        axis.set_ylim(low if from_zero and low == 0 else low - 0.08 * span, high + 0.05 * span)
    axis.set_xmargin(0.02)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(PALE_GREY)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_facecolor("white")
    axis.tick_params(labelsize=SMALL, colors=GREY)
    axis.set_ylabel(shortened(label, LONGEST_LABEL), fontsize=SMALL, color=GREY, parse_math=False)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def frame_rates(axis: Any, curves: Sequence[Array]) -> None:
    """The frame of a strip of learning rates."""
    frame(axis, curves, label="learning rate", from_zero=True)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}" if value else "0"))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))


def mark_cut(axis: Any, x: Array, y: Array) -> None:
    """At the upper edge, the highest value where it lies above."""
    top = axis.get_ylim()[1]
    if not np.isfinite(y).any() or np.nanmax(y) <= top:
        return
    at = int(np.nanargmax(y))
    value = number(float(f"{y[at]:.4g}"))
    on_the_left = x[at] < sum(axis.get_xlim()) / 2
    note = axis.annotate(
        f"▲ {value}" if on_the_left else f"{value} ▲",
        (x[at], top),
        xytext=(-3.5 if on_the_left else 3.5, -1),
        textcoords="offset points",
        fontsize=SMALL - 1,
        color=GREY,
        horizontalalignment="left" if on_the_left else "right",
        verticalalignment="top",
        zorder=5,
    )
    note.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})


def across_steps(axis: Any, label: str = "step") -> None:
    """A step axis: whole numbers with thousands separators."""
    first, last = axis.dataLim.intervalx
    if first == last:
        axis.set_xlim(first - 1, last + 1)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_xlabel(label, fontsize=SMALL, color=GREY)


def legend(place: Any, handles: Sequence[Line2D], labels: Sequence[str], **options: Any) -> None:
    """A legend of an axes object or a figure. Labels are shown as they are, whatever signs they begin with or hold."""
    made = place.legend(handles, ["-"] * len(handles), fontsize=SMALL, frameon=True, edgecolor="none", framealpha=0.8,
                        facecolor="white", labelcolor="black", handlelength=1.6, borderpad=0.2, **options)  # fmt: skip
    for text, label in zip(made.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def number(value: float) -> str:
    """`12,000`, `0.25`, `3e-05`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def count(value: float) -> str:
    """A count in thousands (K), millions (M), billions (B) or trillions (T)."""
    if not math.isfinite(value) or abs(value) < 1000:
        return f"{value:g}"
    power = min(4, int(math.log10(abs(value)) // 3))
    return f"{value / 1000**power:g}{'KMBT'[power - 1]}"
