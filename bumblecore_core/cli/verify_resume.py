"""`bumble verify-resume`: proves on the user's own config and plugins that a killed and resumed run loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bumblecore_core.cli.launch import bumble_command, nproc_option
from bumblecore_core.cli.launched import LAUNCHER
from bumblecore_core.cli.root import app_of
from bumblecore_core.cli.sets import set_option
from bumblecore_core.registry import PluginSwitches
from bumblecore_core.toolkit.outputs import force_option, output_exists
from bumblecore_core.toolkit.terminal import echo

DIFFERS = 1
WHOLE, RESUMED = "whole", "resumed"


@click.command("verify-resume")
@click.argument("config", metavar="RUN.YAML")
@set_option
@click.option("--steps", default=6, show_default=True, type=click.IntRange(2), help="Optimizer steps to train.")
@click.option("--save-at", type=click.IntRange(1), help="The step that is saved and killed at; half way if not given.")
@nproc_option
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the runs in this directory.")
@force_option
@click.pass_context
def verify_resume(
    ctx: click.Context,
    config: str,
    overrides: tuple[str, ...],
    steps: int,
    save_at: int | None,
    processes: int,
    keep: Path | None,
    force: bool,
) -> None:
    """Trains a few steps, kills itself, resumes, and compares everything with a run that was left alone.

    Compared bit for bit: weights, optimizer, schedule, loss scale and random streams of every process, the rows of
    each step in order, losses, learning rates and every other figure that is no timing. Exit code 1 where anything
    differs. Nothing is written to the config's own output_dir.
    """
    from bumblecore_core.config.resolve import load_run

    app = app_of(ctx)
    resolved = load_run(config, overrides, app.registry())
    save_at = save_at or steps // 2
    if save_at >= steps:
        raise click.BadParameter("it must be less than --steps, or nothing is left to resume", param_hint="--save-at")
    if keep is not None:
        _make_room(keep, force=force)
    with tempfile.TemporaryDirectory(prefix="bumble-verify-resume-") as scratch:
        place = Path(keep or scratch)
        place.mkdir(parents=True, exist_ok=True)
        settings = [*overrides, *_settings(steps, save_at), *_shortened(resolved.scheduler.options, steps)]
        launch = _Launch(config, settings, app.switches, processes, place)
        differences = _compare(launch, steps, save_at)
    if differences:
        echo(f"NOT the same after resuming ({len(differences)} differences):")
        for line in differences[:20]:
            echo(f"  {line}")
        ctx.exit(DIFFERS)
    echo(f"the same, bit for bit: killed at step {save_at}, resumed to step {steps}, {processes} process(es)")


def _make_room(keep: Path, *, force: bool) -> None:
    """Deletes the runs that an earlier call kept here. Raises `RunError` BC069 without `force`."""
    from bumblecore_core.run.overwrite import clear

    for name in (WHOLE, RESUMED):
        log = keep / f"{name}.log"
        if not force and any(map(os.path.exists, (keep / name, log))):
            raise output_exists(keep / name, "--keep")
        clear(keep / name)
        log.unlink(missing_ok=True)


def _settings(steps: int, save_at: int) -> list[str]:
    return [
        f"train.max_steps={steps}",
        "train.logging_steps=1",
        f"checkpoint.save_steps={save_at}",
        "checkpoint.save_every=null",
        "checkpoint.save_total_limit=null",
        "checkpoint.save_last=true",
        "checkpoint.resume=auto",
    ]


def _shortened(options: Any, steps: int) -> list[str]:
    """The schedule's phases that a run of so few steps has no room for, each as half of it."""
    counts = {name: getattr(options, name, None) for name in ("warmup_steps", "num_decay_steps")}
    return [f"scheduler.{name}={steps // 2}" for name, count in counts.items() if count and count > steps // 2]


class _Launch:
    """Runs the config in processes of their own, as a user would."""

    def __init__(
        self, config: str, overrides: Sequence[str], switches: PluginSwitches, processes: int, place: Path
    ) -> None:
        self.config, self.overrides, self.switches = config, overrides, switches
        self.processes, self.place = processes, place

    def run(self, name: str, loggers: Sequence[str]) -> int:
        """The exit code; what the run says goes to `NAME.log`."""
        from bumblecore_core.testing import killer

        command = bumble_command(self.switches, killer.__name__)
        command += ["run", self.config]
        command += [f"--nproc={self.processes}"] if self.processes > 1 else []
        for setting in [*self.overrides, f"loggers={json.dumps(list(loggers))}", f"output_dir={self.place / name}"]:
            command += ["--set", setting]
        environment = {**os.environ, LAUNCHER: str(os.getpid())}
        with (self.place / f"{name}.log").open("a", encoding="utf-8") as log:
            return subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, check=False, env=environment
            ).returncode

    def said(self, name: str) -> str:
        """The last lines of a run's log."""
        return "\n".join((self.place / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()[-8:])


def _compare(launch: _Launch, steps: int, save_at: int) -> list[str]:
    from bumblecore_core.run.checkpoint.compare import checkpoint_differences, history_differences
    from bumblecore_core.testing.killer import NAME

    echo(f"training {steps} steps without a break …")
    if launch.run(WHOLE, ["metrics_json"]) != 0:
        raise click.ClickException(f"the run itself failed:\n{launch.said(WHOLE)}")
    echo(f"training again, killed when checkpoint-{save_at} is committed …")
    if launch.run(RESUMED, ["metrics_json", NAME]) == 0:
        raise click.ClickException(f"the run was not killed:\n{launch.said(RESUMED)}")
    echo("resuming …")
    if launch.run(RESUMED, ["metrics_json"]) != 0:
        raise click.ClickException(f"resuming failed:\n{launch.said(RESUMED)}")
    whole, resumed = launch.place / WHOLE, launch.place / RESUMED
    found = [f"metrics.json, {line}" for line in history_differences(whole / "metrics.json", resumed / "metrics.json")]
    for name in (f"checkpoint-{save_at}", f"checkpoint-{steps}", "final"):
        found += [f"{name}/{line}" for line in checkpoint_differences(whole / name, resumed / name)]
    return found
