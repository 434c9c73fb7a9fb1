"""Built-in commands: `bumble generate` and `bumble tokenizer train`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bumblecore_core import CommandRecord, hookimpl


def load_generate() -> click.Command:
    """`bumble generate`."""
    from bumblecore_plugins.commands.generate import generate

    return generate


def load_tokenizer_group() -> click.Command:
    """`bumble tokenizer`."""
    from bumblecore_plugins.commands.tokenizer import tokenizer

    return tokenizer


@hookimpl
def bumble_commands() -> Sequence[CommandRecord]:
    """Commands that need neither a run nor a config."""
    return [
        CommandRecord(
            name="generate", summary="Sample from a model directory or a run's output directory.", load=load_generate
        ),
        CommandRecord(name="tokenizer", summary="Train a tokenizer from data files.", load=load_tokenizer_group),
    ]
