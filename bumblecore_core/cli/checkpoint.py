"""`bumble checkpoint`: what a run has saved, and whether it is whole."""

from __future__ import annotations

from pathlib import Path

import click

from bumblecore_core.errors import Problem, RunError
from bumblecore_core.run.checkpoint.folder import FINAL, Checkpoint, best, inspect, list_checkpoints, problems_of
from bumblecore_core.run.checkpoint.manifest import MANIFEST, read_manifest
from bumblecore_core.run.memory import readable
from bumblecore_core.toolkit.terminal import echo

DO_NOT_USE = "Do not use it; resume goes on from the newest whole one"
directory_argument = click.argument(
    "directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)


@click.group()
def checkpoint() -> None:
    """Lists a run's checkpoints, or verifies every byte of them."""


@checkpoint.command("list")
@directory_argument
def list_command(directory: Path) -> None:
    """Shows the checkpoints of a run's output directory: step, epoch, size, evaluation loss, and what is wrong."""
    found = list_checkpoints(directory)
    if (directory / FINAL).is_dir():
        found.append(inspect(directory / FINAL))
    if not found:
        echo(f"no checkpoint in {directory}")
        return
    winner = best(found[:-1] if found[-1].path.name == FINAL else found)
    rows = [("checkpoint", "step", "epoch", "size", "evaluation loss", ""), *(_row(one, winner) for one in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@checkpoint.command("verify")
@directory_argument
def verify_command(directory: Path) -> None:
    """Compares every file's size and SHA-256 with the manifest: of one checkpoint, or of all that a run saved.

    Ends with exit code 2 where a file is missing, torn or changed.
    """
    if (directory / MANIFEST).exists() or not (names := _saved_in(directory)):
        names = [directory]
    problems: list[Problem] = []
    for path in names:
        if wrong := problems_of(path, fix=DO_NOT_USE):
            problems += wrong
        else:
            manifest = read_manifest(path)
            echo(f"{path}: whole ({len(manifest.files)} files, {readable(manifest.size)}, step {manifest.step})")
    if problems:
        raise RunError(problems)


def _saved_in(directory: Path) -> list[Path]:
    final = [directory / FINAL] if (directory / FINAL).is_dir() else []
    return [one.path for one in list_checkpoints(directory)] + final


def _row(one: Checkpoint, winner: Checkpoint | None) -> tuple[str, ...]:
    if one.manifest is None:
        return (one.path.name, str(one.step) if one.step else "", "", "", "", f"torn: {one.fault}")
    loss = "" if one.evaluation_loss is None else f"{one.evaluation_loss:.4f}"
    epoch = one.manifest.facts.get("epoch")
    shown = "" if epoch is None else f"{epoch:.2f}"
    note = "best by evaluation" if winner is not None and one.path == winner.path else ""
    return (one.path.name, str(one.step), shown, readable(one.manifest.size), loss, note)
