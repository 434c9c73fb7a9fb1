"""What a report's sections hold, as plain text and tables: taken from what the run wrote into its directory."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml

from bumblecore_core import StepEvent
from bumblecore_core.toolkit.figures import FIGURES, ROUTER_FIGURES
from bumblecore_core.toolkit.history import RunRecord

LAST_EVENTS = 20
LONGEST_SAMPLE = 20_000
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
NOTHING = "–"


class Tile(NamedTuple):
    """A key figure: what it is, its value, and what else there is to say about it."""

    name: str
    value: str
    note: str = ""


class Table(NamedTuple):
    """Cells as text, row by row; the first cell of a row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def parts(record: RunRecord) -> dict[str, Any]:
    """Everything that the template shows, by name. A part that the run did not write is empty."""
    info = record.info
    return {
        "name": record.name,
        "directory": str(record.directory),
        "stage": stage_of(record),
        "status": record.status if info else "",
        "problem": str(info.get("problem") or ""),
        "times": [moment(event.time) for event in (*record.events[:1], *record.events[-1:]) if event.time],
        "tiles": tiles(record),
        "not_finite": sum(not math.isfinite(event.metrics.get("loss", 0.0)) for event in record.events),
        "sample": sample(info.get("sample", ())),
        "features": [(str(name), str(value)) for name, value in info.get("features", ())],
        "facts": [(str(name), str(value)) for name, value in info.get("facts", ())],
        "checkpoints": checkpoints(record.directory),
        "last_events": last_events(record.events),
        "meanings": list({**FIGURES, **ROUTER_FIGURES}.items()),
        "config": yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True, width=100),
        "plugins": plugins(record.lock),
        "libraries": [(str(name), str(version)) for name, version in record.lock.get("libraries", {}).items()],
        "fingerprints": fingerprints(record.lock),
    }


def stage_of(record: RunRecord) -> str:
    """The stage's name."""
    chosen = record.config.get("stage")
    return str(record.info.get("stage") or (chosen.get("name") if isinstance(chosen, Mapping) else chosen) or NOTHING)


def tiles(record: RunRecord) -> list[Tile]:
    """The key figures that the run has reported."""
    events, info = record.events, record.info
    found = []
    trained = [event for event in events if event.split == "train"]
    if trained:
        last = trained[-1]
        ended = info.get("status") == "complete"
        name = "final training loss" if ended else "latest training loss"
        found.append(Tile(name, shown("loss", last.metrics["loss"]), f"at step {last.step:,}"))
    steps, losses = record.series("loss", "eval")
    if losses:
        best = min(range(len(losses)), key=losses.__getitem__)
        found.append(Tile("best evaluation loss", shown("loss", losses[best]), f"@ step {steps[best]:,}"))
    found.append(_steps(record))
    tokens = record.series("tokens")[1]
    if tokens:
        exact = shown("tokens", tokens[-1])
        short = count_shown(tokens[-1])
        found.append(Tile("tokens", short, "" if short == exact else exact))
    for name, title in (("tokens_per_second", "tokens/s"), ("mfu", "MFU")):
        if values := record.series(name)[1]:
            found.append(Tile(title, shown(name, median(values)), "median"))
    if memory := record.series("peak_memory_gb")[1]:
        found.append(Tile("peak memory", f"{max(memory):.2f} GB", "of the fullest process"))
    if "seconds" in info:
        since = f"since it was resumed at step {info['first_step']:,}, " if info.get("first_step") else ""
        found.append(Tile("training time", duration(float(info["seconds"])), f"{since}preparing and saving included"))
    return found


def _steps(record: RunRecord) -> Tile:
    info = record.info
    done = int(info["steps"]) if "steps" in info else max((event.step for event in record.events), default=0)
    notes = [f"of {int(info['total_steps']):,}"] if "total_steps" in info else []
    notes += [f"resumed at {int(info['first_step']):,}"] if info.get("first_step") else []
    return Tile("steps", f"{done:,}", ", ".join(notes))


def sample(segments: Sequence[Sequence[Any]]) -> list[tuple[str, bool]]:
    """(text, trained) of the first example, cut where it is very long."""
    found, left = [], LONGEST_SAMPLE
    for text, trained in segments:
        found.append((str(text)[:left], bool(trained)))
        left -= len(found[-1][0])
    cut = sum(len(str(text)) for text, _ in segments) - LONGEST_SAMPLE
    return [*found, (f"… ({cut:,} characters more)", False)] if cut > 0 else found


def checkpoints(directory: Path) -> Table:
    """The saved directories with what their manifests say; a directory that is not whole is named as torn. Sizes are
    compared with the manifest, contents are not (`bumble checkpoint verify` does that)."""
    named = [(int(match[1]), path) for path in directory.iterdir() if (match := CHECKPOINT.fullmatch(path.name))]
    paths = [path for _, path in sorted(named)] + [directory / "final"]
    rows = [_saved(path) for path in paths if path.is_dir() and not path.is_symlink()]
    best = min((loss for *_, loss in rows if loss is not None and math.isfinite(loss)), default=None)
    table = []
    for cells, state, loss in rows:
        value = NOTHING if loss is None else shown("loss", loss)
        table.append((*cells, value, f"{state}, best" if loss is not None and loss == best else state))
    return Table(("directory", "step", "epoch", "size", "evaluation loss", "state"), table)


def _saved(path: Path) -> tuple[Sequence[str], str, float | None]:
    """(name, step, epoch and size, whether it is whole, evaluation loss) of a saved directory."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        facts, files = manifest["facts"], manifest["files"]
        size = sum(entry["size"] for entry in files.values())
        step, epoch, loss = int(facts["step"]), facts.get("epoch"), facts.get("evaluation_loss")
        cells = (path.name, f"{step:,}", NOTHING if epoch is None else f"{epoch:.2f}", bytes_shown(size))
        loss = None if loss is None else float(loss)
        changed = [name for name, entry in files.items() if (path / name).stat().st_size != entry["size"]]
    except FileNotFoundError as error:
        missing = Path(error.filename or "").name
        return (path.name, NOTHING, NOTHING, NOTHING), f"torn: {missing} is missing", None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return (path.name, NOTHING, NOTHING, NOTHING), "torn: manifest.json is damaged", None
    return cells, f"torn: the size of {changed[0]} differs" if changed else "whole", loss


def last_events(events: Sequence[StepEvent]) -> Table:
    """The newest events, the newest last, with every figure that any of them holds."""
    latest = events[-LAST_EVENTS:]
    names = list(dict.fromkeys(name for event in latest for name in event.metrics))
    kinds = {"train": "training", "eval": "evaluation"}
    rows = [
        [f"{event.step:,}", kinds.get(event.split, event.split), f"{event.epoch:.2f}"]
        + [shown(name, event.metrics[name]) if name in event.metrics else NOTHING for name in names]
        for event in latest
    ]
    return Table(("step", "event", "epoch", *names), rows)


def plugins(lock: Mapping[str, Any]) -> Table:
    """The plugins in use, with the distribution that each came from."""
    keys = ("kind", "name", "distribution", "version")
    return Table(keys, [[str(plugin[key]) for key in keys] for plugin in lock.get("plugins", ())])


def fingerprints(lock: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, fingerprint) of data, tokenizer and weights, and the number of processes."""
    found = []
    for name in ("data", "evaluation_data"):
        if stored := lock.get(name):
            found.append((f"{name.replace('_', ' ')}, {int(stored['examples']):,} examples", str(stored["content"])))
    if lock.get("tokenizer"):
        found.append(("tokenizer", str(lock["tokenizer"])))
    if weights := (lock.get("model") or {}).get("weights"):
        found.append(("start weights", str(weights)))
    if "world_size" in lock:
        found.append(("processes", str(lock["world_size"])))
    return found


def shown(name: str, value: float) -> str:
    """A figure's value as the page writes it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if name.startswith("learning_rate"):
        return f"{value:.2e}"
    if name in ("mfu", "data_wait"):
        return f"{value:.1%}"
    if name in ("tokens", "skipped_steps"):
        return f"{value:,.0f}"
    if name.endswith("_per_second"):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def count_shown(count: float) -> str:
    """A count of up to a million in full, `29.49 M` or `1.20 B` above."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f}"


def moment(time: float) -> str:
    """A time in Unix seconds, in UTC."""
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """`12.3 s`, `4 min 05 s` or `3 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"


def bytes_shown(count: float) -> str:
    """`1.23 GB`, `4.5 MB` or `67 kB`, in powers of ten."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    if count >= 1e6:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.0f} kB" if count >= 1e3 else f"{count:.0f} bytes"
