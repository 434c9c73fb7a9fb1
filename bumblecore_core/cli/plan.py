"""`bumble plan`: what a run would do, without training."""

from __future__ import annotations

import click

from bumblecore_core.cli.root import app_of
from bumblecore_core.cli.sets import set_option


@click.command()
@click.argument("config", metavar="RUN.YAML")
@set_option
@click.option("--devices", default=1, show_default=True, type=click.IntRange(1), help="Devices to plan for.")
@click.pass_context
def plan(ctx: click.Context, config: str, overrides: tuple[str, ...], devices: int) -> None:
    """Checks config, data, tokenizer and model; shows rows, tokens, steps, features and estimated memory.

    Makes the token shards (a following run reuses them); trains nothing and writes nothing to output_dir.
    """
    from bumblecore_core.config.resolve import load_run

    app = app_of(ctx)
    resolved = load_run(config, overrides, app.registry())

    from bumblecore_core.cli.report import announce
    from bumblecore_core.config.origins import located
    from bumblecore_core.run.planning import plan_run

    with located(resolved):
        info = plan_run(resolved, app.registry(), app.switches, devices=devices)
    announce(info)
