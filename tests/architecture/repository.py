"""The repository's files, as its tests see them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = {"build", "dist", "runs", "venv", "__pycache__", "node_modules"}


def files(*suffixes: str) -> Iterator[Path]:
    """Files with one of the suffixes (all of them where none is given), without what tools and runs leave behind."""
    stack = [ROOT]
    while stack:
        for path in sorted(stack.pop().iterdir()):
            hidden = path.name.startswith(".") and path.name not in (".ci", ".github", ".gitignore")
            if hidden or path.name in MADE or path.name.endswith(".egg-info"):
                continue
            if path.is_dir():
                stack.append(path)
            elif not suffixes or path.suffix in suffixes:
                yield path


def name(path: Path) -> str:
    """The path as test ids and messages show it."""
    return path.relative_to(ROOT).as_posix()


def code_blocks(markdown: str) -> dict[str, str]:
    """Code blocks behind a `<!-- file: NAME -->` comment, by name."""
    blocks: dict[str, str] = {}
    for part in markdown.split("<!-- file: ")[1:]:
        title, rest = part.split(" -->", 1)
        fence = rest.strip().split("\n", 1)
        assert fence[0].startswith("```"), f"no code block follows the marker of {title}"
        blocks[title] = fence[1].split("\n```", 1)[0] + "\n"
    return blocks
