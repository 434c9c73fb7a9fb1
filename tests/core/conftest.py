"""Fixtures of the config and the data tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_records import make_registry

from bumblecore_core.config.resolve import ResolvedRun, load_run
from bumblecore_core.errors import BumbleError, Problem

REGISTRY = make_registry()


@pytest.fixture
def load(tmp_path: Path, monkeypatch):
    """Resolves YAML text, as the file run.yaml of the working directory, with overrides."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *overrides: str) -> ResolvedRun:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return load_run("run.yaml", overrides, REGISTRY)

    return run


@pytest.fixture
def wrong(load):
    """The problems of YAML text with overrides."""

    def run(text: str, *overrides: str) -> list[Problem]:
        with pytest.raises(BumbleError) as caught:
            load(text, *overrides)
        assert len(str(caught.value).splitlines()) == len(caught.value.problems)
        return list(caught.value.problems)

    return run


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Writes a jsonl file of texts (or of whole rows) in the working directory and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(rows, name="a.jsonl"):
        lines = [json.dumps(row if isinstance(row, dict) else {"text": row}) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        return name

    return write
