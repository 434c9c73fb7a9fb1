"""`bumble run`: trains one config, or several in order."""

from __future__ import annotations

import json

import click

from bumblecore_core.cli.root import app_of
from bumblecore_core.cli.sets import set_option

AS_A_SHELL_DOES = 128  # a run that a signal ended exits with this and the signal's number


@click.command()
@click.argument("configs", nargs=-1, required=True, metavar="RUN.YAML…")
@set_option
@click.option("--overwrite", is_flag=True, help="Delete what an earlier run left in output_dir and start anew.")
@click.option("--resume", metavar="auto|never|DIR", help="What to go on from; the same as --set checkpoint.resume=…")
@click.option(
    "--allow",
    metavar="NAME",
    multiple=True,
    help="Resume although this changed (as an error names it, such as optimizer.lr or data); repeatable.",
)
@click.option("--profile-plugins", is_flag=True, help="At the end, print how long each plugin took in each phase.")
@click.pass_context
def run(
    ctx: click.Context,
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    overwrite: bool,
    resume: str | None,
    allow: tuple[str, ...],
    profile_plugins: bool,
) -> None:
    """Trains each config in order; a later one may name an earlier one's output_dir as its model.

    All configs are checked before the first one trains. A run that is already complete is left as it is; one that was
    interrupted goes on from its newest checkpoint, to the same bits as if it had never stopped.
    """
    from bumblecore_core.config.resolve import load_run

    app = app_of(ctx)
    registry = app.registry()
    if resume is not None:
        overrides = (*overrides, f"checkpoint.resume={json.dumps(resume)}")
    if allow:
        overrides = (*overrides, f"checkpoint.allow={json.dumps(list(allow))}")
    resolved = [load_run(path, overrides, registry) for path in configs]

    from bumblecore_core.cli.report import announce, ended
    from bumblecore_core.config.origins import located
    from bumblecore_core.run.execute import execute
    from bumblecore_core.run.later import check_later_run
    from bumblecore_core.run.profiling import PluginTimes

    for at, later in enumerate(resolved[1:], 1):
        with located(later):
            check_later_run(later, resolved[:at], overwrite=overwrite)
    for one in resolved:
        times = PluginTimes() if profile_plugins else None
        with located(one):
            outcome = execute(one, registry, app.switches, overwrite=overwrite, announce=announce, times=times)
        if outcome.rank == 0:
            ended(one.config.output_dir, outcome)
        if outcome.rank == 0 and times is not None:
            click.echo("\n".join(["time per plugin and phase (phases nest)", *times.lines(outcome.result.seconds)]))
        if outcome.stopped_by:
            ctx.exit(AS_A_SHELL_DOES + outcome.stopped_by)
