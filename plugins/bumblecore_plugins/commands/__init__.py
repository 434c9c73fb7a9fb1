"""Built-in commands: `bumble generate`, `merge`, `tokenizer train`, `compare` and `report`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bumblecore_core import CommandRecord, hookimpl


def load_generate() -> click.Command:
    """`bumble generate`."""
    from bumblecore_plugins.commands.generate import generate

    return generate


def load_merge() -> click.Command:
    """`bumble merge`."""
    from bumblecore_plugins.commands.merge import merge

    return merge


def load_tokenizer_group() -> click.Command:
    """`bumble tokenizer`."""
    from bumblecore_plugins.commands.tokenizer import tokenizer

    return tokenizer


def load_compare() -> click.Command:
    """`bumble compare`."""
    from bumblecore_plugins.commands.compare import compare

    return compare


def load_report() -> click.Command:
    """`bumble report`."""
    from bumblecore_plugins.commands.report import report

    return report


@hookimpl
def bumble_commands() -> Sequence[CommandRecord]:
    """Commands that need neither a run nor a config."""
    return [
        CommandRecord(
            name="generate", summary="Sample from a model directory or a run's output directory.", load=load_generate
        ),
        CommandRecord(name="merge", summary="Fold an adapter into its base model.", load=load_merge),
        CommandRecord(name="tokenizer", summary="Train a tokenizer from data files.", load=load_tokenizer_group),
        CommandRecord(name="compare", summary="Compare runs: figures, configs, curves.", load=load_compare),
        CommandRecord(name="report", summary="Write one self-contained HTML page about a run.", load=load_report),
    ]
