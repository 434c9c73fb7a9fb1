"""The command group: global switches, lazily imported commands, errors as lines."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from bumblecore_core.cli.launched import interrupted_text
from bumblecore_core.cli.threads import let_idle_threads_sleep
from bumblecore_core.errors import BumbleError, PluginError, one, printable
from bumblecore_core.registry import PluginSwitches, Provided, Registry, load_registry
from bumblecore_core.registry.collect import clash, one_line
from bumblecore_core.run.console import output_may_fail, say
from bumblecore_core.run.files import failing_disk
from bumblecore_core.run.interrupts import AS_A_SHELL_DOES, EarlyInterrupts, interrupted_by
from bumblecore_core.toolkit.rank_errors import print_rank_error
from bumblecore_core.toolkit.terminal import echo, escape_logs, show_defect

CORE_COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("bumblecore_core.cli.run:run", "Train: one config, or several in order."),
    "plan": ("bumblecore_core.cli.plan:plan", "Say what a run would do and how much memory it takes; train nothing."),
    "checkpoint": ("bumblecore_core.cli.checkpoint:checkpoint", "List a run's checkpoints, or verify them."),
    "verify-resume": (
        "bumblecore_core.cli.verify_resume:verify_resume",
        "Kill and resume a short run of a config, and compare it bit for bit with one left alone.",
    ),
    "config": ("bumblecore_core.cli.config:config", "Show, start, or describe a run's configuration."),
    "plugins": ("bumblecore_core.cli.plugins:plugins", "List plugins; show one plugin's options."),
}
"""The core's own commands: name → (`module:attribute`, summary). Help reads this table alone."""


@dataclass(frozen=True)
class AppContext:
    """What commands share: the plugin switches, and the registry that is made from them when first asked for."""

    switches: PluginSwitches

    def registry(self) -> Registry:
        """The registry of this process. Raises `PluginError` as `load_registry` does, and BC053 for a plugin's command
        that has a core command's name."""
        return self._registry

    @cached_property
    def _registry(self) -> Registry:
        registry = load_registry(self.switches)
        for item in registry.all("commands"):
            if item.record.name in CORE_COMMANDS:
                raise PluginError([clash(item.record, "bumblecore's core", item.plugin.origin)])
        return registry


def app_of(ctx: click.Context) -> AppContext:
    """The process's `AppContext`, made from the root command's options when it is first asked for."""
    root = ctx.find_root()
    if not isinstance(root.obj, AppContext):
        switches = PluginSwitches.from_environment(
            no_plugins=bool(root.params.get("no_plugins")), modules=root.params.get("plugin") or ()
        )
        root.obj = AppContext(switches)
    ctx.obj = root.obj
    return root.obj


class LazyGroup(click.Group):
    """Core commands from the table, then those of plugins. A core command runs without any plugin being imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Core commands in the table's order, then plugins' by name. Broken plugins do not hide the help."""
        return [*CORE_COMMANDS, *(item.record.name for item in _plugin_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None where there is none of that name."""
        if cmd_name in CORE_COMMANDS:
            return _core_command(cmd_name)
        if cmd_name not in app_of(ctx).registry().names("commands"):
            return None
        return load_command(app_of(ctx).registry().provided("commands", cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises `PluginError` BC056 with the nearest names for a command that nothing provides."""
        command = self.get_command(ctx, args[0])
        if command is None and not args[0].startswith("-"):
            raise app_of(ctx).registry().missing("commands", args[0], also=CORE_COMMANDS)
        return super().resolve_command(ctx, args) if command is None else (args[0], command, args[1:])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. What a plugin's command raises beyond click's own exceptions names the plugin (BC060)."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            from bumblecore_core.run.blame import Plugin, passes, raised

            name = ctx.invoked_subcommand
            if name is None or name in CORE_COMMANDS or passes(error):
                raise
            raise raised(Plugin.of(app_of(ctx).registry().get("commands", name)), error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and summaries from the table and the records: no command is imported for help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in CORE_COMMANDS.items()])
        extra = [(item.record.name, printable(item.record.summary)) for item in _plugin_commands(ctx)]
        if extra:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(extra)


def load_command(item: Provided) -> click.Command:
    """The click command of a `CommandRecord`. Raises `PluginError`: BC060 where its `load` raises, BC055 where it
    returns something else."""
    record: Any = item.record
    field = f"commands.{record.name}"
    try:
        command = record.load()
    except Exception as error:
        problem = f"loading the command of plugin '{item.plugin.name}' of {item.plugin.origin} raised {one_line(error)}"
        raise one(PluginError, "BC060", problem, "Repair or uninstall that distribution", field=field) from error
    if not isinstance(command, click.Command):
        problem = f"plugin '{item.plugin.name}' of {item.plugin.origin} loads a {type(command).__name__}"
        raise one(PluginError, "BC055", problem, "Return a click.Command from `load`", field=f"{field}.load")
    return command


def _core_command(name: str) -> click.Command:
    module, _, attribute = CORE_COMMANDS[name][0].partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def _plugin_commands(ctx: click.Context) -> Sequence[Provided]:
    """Plugins' commands for help and completion; where the registry cannot be made, its error is shown beside them."""
    try:
        return app_of(ctx).registry().all("commands")
    except BumbleError as error:
        if not ctx.meta.setdefault("bumblecore.registry_error_shown", False):
            ctx.meta["bumblecore.registry_error_shown"] = True
            echo(error.render(), err=True)
        return []


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        try:
            click.echo(f"bumble {version('bumblecore')}")
        except PackageNotFoundError:
            click.echo("bumble (not installed)")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`bumble COMMAND --help` describes a command. `bumble plugins list` shows what a config can choose from.",
)
@click.option("--local_rank", type=int, hidden=True, expose_value=False)  # DeepSpeed's launcher adds it
@click.option("--no-plugins", is_flag=True, is_eager=True, help="Load built-in plugins only (or BUMBLE_NO_PLUGINS=1).")
@click.option(
    "-p",
    "--plugin",
    metavar="MODULE",
    multiple=True,
    is_eager=True,
    help="Load a local module as a plugin, found from the working directory; repeatable.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.pass_context
def bumble(ctx: click.Context, no_plugins: bool, plugin: tuple[str, ...]) -> None:
    """Trains language models; every choice is a plugin."""
    app_of(ctx)


def main(args: Sequence[str] | None = None) -> None:
    """The console script. Bad input ends in lines on stderr and the error's exit code; a defect shows its traceback."""
    if args is None:
        _require_utf8()
    let_idle_threads_sleep()
    escape_logs()
    sys.excepthook = show_defect
    try:
        with EarlyInterrupts(), failing_disk():  # signals raise, so that every command cleans up
            code = bumble.main(args=None if args is None else list(args), prog_name="bumble", standalone_mode=False)
            sys.stdout.flush()
    except BumbleError as error:
        with output_may_fail():  # what is left of it would fail again when the process ends
            sys.stdout.flush()
        _say(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        message = io.StringIO()
        error.show(file=message)
        echo(message.getvalue().rstrip("\n"), err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        say(interrupted_text(error))
        sys.exit(AS_A_SHELL_DOES + interrupted_by(error))
    sys.exit(code if isinstance(code, int) else 0)


def _require_utf8() -> None:
    """Starts this process again in UTF-8 mode where Python cannot name files beyond ASCII (an ASCII locale with
    PYTHONUTF8=0): the mode cannot be changed in a running process."""
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _say(error: BumbleError) -> None:
    """Prints the error; of several processes that meet the same wrong config, plugin or data, one on each machine."""
    if os.environ.get("BUMBLE_TRACEBACK") == "1":
        traceback.print_exception(error)
    print_rank_error(error)
