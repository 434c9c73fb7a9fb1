"""For tests of `bumble report`: runs' directories made by hand, and the page taken apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import yaml
from click.testing import CliRunner

from bumblecore_core import BumbleError
from bumblecore_plugins.commands.report import report

VOID = {"meta", "link", "br"}
INFO = {
    "stage": "sft",
    "reads": "chat",
    "smooth": True,
    "total_steps": 60,
    "first_step": 0,
    "facts": [["rows", "40 read"], ["estimated memory", "3 GB"], ["  weights", "1 GB"]],
    "features": [["packing", "on"]],
    "sample": [["<|user|>\nHow many?\n", False], ["Two, or three.", True]],
    "status": "complete",
    "steps": 60,
    "seconds": 3725.0,
    "summary": {"loss": 1.0, "eval_loss": None},
    "problem": "",
}
LOCK = {
    "plugins": [{"kind": "stages", "name": "sft", "distribution": "bumblecore", "version": "0.1.0"}],
    "libraries": {"python": "3.11.7", "torch": "2.13.0"},
    "data": {"content": "d" * 64, "weights": [1.0], "examples": 1234},
    "evaluation_data": None,
    "tokenizer": "e" * 64,
    "model": {"config": {}, "weights": "f" * 64},
    "world_size": 2,
}
CONFIG = {"stage": {"name": "sft"}, "model": {"path": "start", "dtype": "bf16"}, "train": {"max_steps": 60}}


class Page(HTMLParser):
    """A page taken apart: every element with its attributes and the text inside it, in the order of their beginning.
    Fails where an end tag is not that of the innermost open element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        for at in self._open:
            self.elements[at][2].append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [
            "".join(text) for name, found, text in self.elements if name == tag and attributes.items() <= found.items()
        ]

    def attributes(self, name: str) -> list[str]:
        return [found[name] or "" for _, found, _ in self.elements if name in found]

    def tiles(self) -> dict[str, str]:
        cells = [" ".join(text.split()) for text in self.texts("div") if "\n" not in text.strip()]
        names = self.texts("dt")
        return {name: next(cell for cell in cells if cell.startswith(name))[len(name) :] for name in names}

    def table(self, label: str) -> list[list[str]]:
        at = next(at for at, (_, found, _) in enumerate(self.elements) if found.get("aria-label") == label)
        rows: list[list[str]] = []
        for tag, _, text in self.elements[at + 1 :]:
            if tag == "tr":
                rows.append([])
            elif tag in ("th", "td"):
                rows[-1].append("".join(text))
            elif tag not in ("table", "thead", "tbody"):
                break
        return rows


def history(steps: int = 60) -> list[dict]:
    events: list[dict] = []
    for step in range(1, steps + 1):
        figures = {"loss": 1 + 9 / step, "learning_rate": 1e-4 / step, "grad_norm": 2.0, "tokens": 50_000.0 * step}
        figures |= {"tokens_per_second": 1000.0 + step, "mfu": 0.4, "peak_memory_gb": 5.0 + step / 100}
        events.append({"step": step, "epoch": step / 30, "split": "train", "time": 1.7e9 + step, **figures})
        if step % 20 == 0:
            loss = 2 + (step - 40) ** 2 / 1000
            events.append({"step": step, "epoch": step / 30, "split": "eval", "time": 1.7e9 + step, "loss": loss})
    return events


def write_run(directory: Path, *, events=None, info=INFO, lock=LOCK, config=CONFIG) -> Path:
    directory.mkdir()
    (directory / "run.yaml").write_text(yaml.safe_dump(config))
    (directory / "metrics.json").write_text(json.dumps(history() if events is None else events))
    (directory / "run.lock.json").write_text(json.dumps(lock))
    if info is not None:
        (directory / "run.info.json").write_text(json.dumps(info))
    return directory


def save(directory: Path, step: int, *, size: int = 2_000_000, written: int | None = None, **facts) -> None:
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(bytes(size if written is None else written))
    files = {"model.safetensors": {"size": size, "sha256": "0" * 64}}
    (directory / "manifest.json").write_text(json.dumps({"facts": {"step": step, **facts}, "files": files}))


def invoke(*arguments):
    return CliRunner().invoke(report, [str(argument) for argument in arguments])


def page_of(run: Path, *arguments) -> Page:
    result = invoke(run, "--force", *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return Page((run / "report.html").read_text(encoding="utf-8"))


def problem_of(*arguments):
    result = invoke(*arguments)
    assert isinstance(result.exception, BumbleError), (result.output, result.exception)
    return result.exception.problems[0]
