"""The `--set` option that commands with a run's config share."""

from __future__ import annotations

import click

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a config value, e.g. --set optimizer.lr=1e-5 --set loss=causal_lm_naive.",
)
