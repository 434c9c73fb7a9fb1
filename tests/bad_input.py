"""Drives `bumble` as a user with bad input does, and checks what every answer to bad input must keep to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bumblecore_core.cli import main
from workbench import sentence

SECRET = "heliotrope"  # stands in rows, and must never be shown
LINE = re.compile(r"(?P<code>BC\d{3})(?P<where>(?: \S.*?)?): (?P<text>\S.*[.!?])")


@dataclass(frozen=True)
class Answer:
    """What one call of `bumble` printed."""

    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The problems, one a line."""
        return [line for line in self.err.splitlines() if line.startswith("BC")]

    def only(self, code: str, *parts: object) -> str:
        """The one problem there is, which has this code and holds all of `parts`."""
        assert len(self.lines) == 1, self.err
        return self.has(code, *parts)

    def has(self, code: str, *parts: object) -> str:
        """The first problem of this code that holds all of `parts`."""
        for line in self.lines:
            if line.startswith(code + " ") and all(str(part) in line for part in parts):
                return line
        raise AssertionError(f"no {code} with {parts} in:\n{self.err}")


@dataclass(frozen=True)
class Scene:
    """A directory for one test's files beside a model and a tokenizer that are in order."""

    directory: Path
    model: Path
    capsys: pytest.CaptureFixture[str]

    def file(self, name: str, content: str | bytes) -> Path:
        """Writes a file."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        """Writes JSON lines; a text is a line as it is."""
        return self.file(name, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))

    def config(self, stage: str = "sft", *, name: str = "run.yaml", **settings: Any) -> Path:
        """Writes a config that is in order but for `settings`: dotted keys with `__` for the dot; None removes one."""
        sections: dict[str, Any] = {
            "stage": stage,
            "model": {"path": str(self.model), "dtype": "fp32"},
            "data": {"path": str(self.directory / "rows.jsonl"), "max_length": 128},
            "train": {"micro_batch_size": 2, "max_steps": 2},
            "loggers": ["metrics_json"],
            "output_dir": str(self.directory / "out"),
        }
        for key, value in settings.items():
            section, _, inner = key.partition("__")
            target, last = (sections[section], inner) if inner else (sections, section)
            if value is None:
                target.pop(last, None)
            else:
                target[last] = str(value) if isinstance(value, Path) else value
        return self.file(name, yaml.safe_dump(sections, sort_keys=False))

    def line_of(self, config: Path, key: str) -> str:
        """`file:line` of the first line of `config` that begins with `key` (after its indentation)."""
        lines = config.read_text().splitlines()
        return f"{config}:{next(n for n, line in enumerate(lines, 1) if line.strip().startswith(key + ':'))}"

    def call(self, *args: object, code: int = 2) -> Answer:
        """`bumble ARGS`, which must end with exit code `code`; checks the form of every problem."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        answer = Answer(*self.capsys.readouterr())
        assert (ended.value.code or 0) == code, answer.err + answer.out
        assert "Traceback" not in answer.err
        assert SECRET not in answer.err + (answer.out if code else "")
        assert len(answer.lines) <= 20
        assert bool(answer.lines) == (code == 2), answer.err
        for line in answer.lines:
            assert LINE.fullmatch(line), line
        return answer

    def plan(self, stage: str = "sft", *, code: int = 2, **settings: Any) -> Answer:
        """`bumble plan` of such a config, which needs no weights."""
        return self.call("plan", self.config(stage, **settings), code=code)


def user(content: Any = f"a question on {SECRET}") -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content}


def reply(content: Any = f"an answer on {SECRET}") -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": content}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A row of messages; a question and its answer where none are given."""
    return {"messages": list(messages) or [user(), reply()], **more}


def good(count: int) -> list[dict[str, Any]]:
    """Rows in order, each different."""
    return [chat(user(sentence(at, 4)), reply(sentence(at + 1, 5))) for at in range(count)]
