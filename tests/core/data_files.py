"""Writing data files and reading them back, for the tests of readers."""

from __future__ import annotations

from pathlib import Path

from bumblecore_core.run.data.reading import read_rows
from bumblecore_core.run.data.text_lines import BadRow, FileRow


def write(directory: Path, name: str, content: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def good(path: Path, **options) -> list[tuple[int, dict]]:
    items = list(read_rows(path, **options))
    assert all(isinstance(item, FileRow) for item in items), items
    return [(item.line, item.row) for item in items]


def problems(path: Path) -> list[tuple[int, str, str]]:
    return [(bad.line, bad.problem.code, bad.problem.place) for bad in read_rows(path) if isinstance(bad, BadRow)]


def only_problem(path: Path):
    (bad,) = [item for item in read_rows(path) if isinstance(item, BadRow)]
    return bad.problem
