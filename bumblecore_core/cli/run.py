"""`bumble run`: trains one config, or several in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bumblecore_core.cli.launch import bumble_command, launch, nproc_option
from bumblecore_core.cli.launched import told_to_launcher
from bumblecore_core.cli.root import AppContext, app_of
from bumblecore_core.cli.sets import set_option
from bumblecore_core.run.console import output_may_fail
from bumblecore_core.run.files import failing_disk
from bumblecore_core.run.interrupts import AS_A_SHELL_DOES
from bumblecore_core.toolkit.terminal import echo

if TYPE_CHECKING:
    from bumblecore_core.config.resolved import ResolvedRun


@click.command()
@click.argument("configs", nargs=-1, required=True, metavar="RUN.YAML…")
@set_option
@nproc_option
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in output_dir, once the new one has trained.")
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
    processes: int,
    overwrite: bool,
    resume: str | None,
    allow: tuple[str, ...],
    profile_plugins: bool,
) -> None:
    """Trains each config in order; a later one may name an earlier one's output_dir as its model.

    All configs are checked before the first one trains. A run that is already complete is left as it is; one that was
    interrupted goes on from its newest checkpoint, to the same bits as if it had never stopped.
    """
    app = app_of(ctx)
    if resume is not None:
        overrides = (*overrides, f"checkpoint.resume={json.dumps(resume)}")
    if allow:
        overrides = (*overrides, f"checkpoint.allow={json.dumps(list(allow))}")
    with told_to_launcher(), failing_disk():
        resolved = _checked(app, configs, overrides, overwrite=overwrite)
        if processes == 1:
            ctx.exit(_train(app, resolved, overwrite=overwrite, profile=profile_plugins))
    command = [*bumble_command(app.switches), "run"]
    command += [f"--set={setting}" for setting in overrides]
    command += ["--overwrite"] * overwrite + ["--profile-plugins"] * profile_plugins
    ctx.exit(launch([*command, "--", *configs], processes))


def _checked(
    app: AppContext, configs: Sequence[str], overrides: Sequence[str], *, overwrite: bool
) -> list[ResolvedRun]:
    from bumblecore_core.config.resolve import load_run

    resolved = [load_run(path, overrides, app.registry()) for path in configs]

    from bumblecore_core.config.origins import located
    from bumblecore_core.run.later import check_later_run

    for at, later in enumerate(resolved[1:], 1):
        with located(later):
            check_later_run(later, resolved[:at], overwrite=overwrite)
    return resolved


def _train(app: AppContext, resolved: Sequence[ResolvedRun], *, overwrite: bool, profile: bool) -> int:
    """The exit code."""
    from bumblecore_core.cli.report import announce, ended
    from bumblecore_core.config.origins import located
    from bumblecore_core.run.execute import execute
    from bumblecore_core.run.profiling import PluginTimes

    for one in resolved:
        times = PluginTimes() if profile else None
        with located(one):
            outcome = execute(
                one,
                app.registry(),
                app.switches,
                overwrite=overwrite,
                announce=output_may_fail()(announce),
                times=times,
            )
        if outcome.rank == 0:
            with output_may_fail():
                ended(one.config.output_dir, outcome, overwrite=overwrite)
        if outcome.rank == 0 and times is not None:
            echo("\n".join(["time per plugin and phase (phases nest)", *times.lines(outcome.result.seconds)]))
        if outcome.stopped_by:
            return AS_A_SHELL_DOES + outcome.stopped_by
    return 0
