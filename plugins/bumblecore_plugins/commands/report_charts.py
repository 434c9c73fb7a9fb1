"""A run's curves as SVG that stands inside an HTML page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup

from bumblecore_core import StepEvent
from bumblecore_core.toolkit.history import RunRecord, series
from bumblecore_core.toolkit.plots import panels_figure, training_figure

PANELS = ("grad_norm", "tokens_per_second", "mfu", "peak_memory_gb", "data_wait", "skipped_steps")
"""The core's figures that get a panel of their own, in this order; what else there is to draw stands below the loss."""
LINES = "stroke-linejoin:round;stroke-linecap:butt"


class Chart(NamedTuple):
    """`svg`: markup; `caption`: what it shows, in words."""

    svg: Markup
    caption: str


def charts(record: RunRecord) -> list[Chart]:
    """The loss with what stage and loss report, then a panel for each figure of `PANELS`; empty where no finite value
    was reported."""
    found = []
    events, smooth = record.events, bool(record.info.get("smooth", True))
    if any(series(events, "loss", split)[0] for split in ("train", "eval")):
        caption = "Loss, learning rate and the figures of the stage, by optimizer step."
        found.append(Chart(inline_svg(training_figure(events, smooth=smooth, title=""), "training", caption), caption))
    if names := panel_names(events):
        caption = "Figures of the optimizer and the machine, by optimizer step."
        found.append(Chart(inline_svg(panels_figure(events, names, title=""), "panels", caption), caption))
    return found


def panel_names(events: Sequence[StepEvent]) -> list[str]:
    """Those of `PANELS` that have a finite value; skipped steps only where there were any."""
    values = {name: series(events, name)[1] for name in PANELS}
    return [name for name, found in values.items() if (any(found) if name == "skipped_steps" else found)]


def inline_svg(figure: Any, name: str, label: str) -> Markup:
    """`figure` as an `<svg>` element whose text is text. Its ids begin with `name`, so that several stand in one page,
    and its only style sheet, which would hold for the whole page, becomes an attribute. `label` is for those who do not
    see it. The same figure gives the same markup."""
    written = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg")
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): _prefixed(_local(key), value, name) for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(attributes)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib.update({"role": "img", "aria-label": label, "style": LINES})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(name: str) -> str:
    """A name without its namespace: inside HTML, SVG needs none."""
    return name.rpartition("}")[2]


def _prefixed(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    return value.replace("url(#", f"url(#{prefix}-")
