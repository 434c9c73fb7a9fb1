"""`bumble run`: trains one config, or several in order."""

from __future__ import annotations

import click

from bumblecore_core.cli.root import app_of
from bumblecore_core.cli.sets import set_option

INTERRUPTED = 128 + 2  # as a shell reports SIGINT


@click.command()
@click.argument("configs", nargs=-1, required=True, metavar="RUN.YAML…")
@set_option
@click.option("--overwrite", is_flag=True, help="Delete what an earlier run left in output_dir and start anew.")
@click.pass_context
def run(ctx: click.Context, configs: tuple[str, ...], overrides: tuple[str, ...], overwrite: bool) -> None:
    """Trains each config in order; a later one may name an earlier one's output_dir as its model.

    All configs are checked before the first one trains. A run that is already complete is left as it is.
    """
    from bumblecore_core.config.resolve import load_run

    app = app_of(ctx)
    registry = app.registry()
    resolved = [load_run(path, overrides, registry) for path in configs]

    from bumblecore_core.cli.report import announce, ended
    from bumblecore_core.config.origins import located
    from bumblecore_core.run.execute import execute
    from bumblecore_core.run.later import check_later_run

    for at, later in enumerate(resolved[1:], 1):
        with located(later):
            check_later_run(later, resolved[:at], overwrite=overwrite)
    for one in resolved:
        try:
            with located(one):
                outcome = execute(one, registry, app.switches, overwrite=overwrite, announce=announce)
        except KeyboardInterrupt:
            click.echo(
                f"interrupted: no model was saved in {one.config.output_dir}; what was logged is there", err=True
            )
            ctx.exit(INTERRUPTED)
        if outcome.rank == 0:
            ended(one.config.output_dir, outcome)
