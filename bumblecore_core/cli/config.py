"""`bumble config`: the schema for editors, a run's resolved values with their origins, and a file to start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from bumblecore_core.cli.root import app_of
from bumblecore_core.cli.sets import set_option
from bumblecore_core.toolkit.outputs import check_output_file, force_option, write_output_file
from bumblecore_core.toolkit.terminal import echo, to_json

output_option = click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write to this file instead of the terminal.",
)


@click.group()
def config() -> None:
    """Show, start, or describe a run's configuration."""


@config.command("schema")
@output_option
@force_option
@click.pass_context
def schema(ctx: click.Context, output: Path | None, force: bool) -> None:
    """Print the JSON Schema of a config, with the options of every installed plugin.

    An editor that reads `# yaml-language-server: $schema=bumble.schema.json` completes and checks with it.
    """
    from bumblecore_core.config.json_schema import config_schema

    _give(lambda: to_json(config_schema(app_of(ctx).registry()), indent=2), output, force=force)


@config.command("show")
@click.argument("path", metavar="RUN.YAML")
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the config, and the origin of each key.")
@click.pass_context
def show(ctx: click.Context, path: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print every value of a run and where it comes from: a default, a line of the file, or the command line."""
    from bumblecore_core.config.keys import dotted
    from bumblecore_core.config.resolve import load_run
    from bumblecore_core.config.resolved import leaves
    from bumblecore_core.config.shape import lookup

    run = load_run(path, overrides, app_of(ctx).registry())
    if as_json:
        shown = {"config": run.to_dict(), "origins": dict(run.origins)}
        echo(to_json(shown, indent=2))
        return
    plain = run.to_dict()
    values = [(dotted(key), json.dumps(lookup(plain, key), ensure_ascii=False)) for key in leaves(plain)]
    rows = [(key, value, run.origins[key]) for key, value in values]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, origin in rows:
        echo(f"{key:<{widths[0]}}  {value:<{min(widths[1], 48)}}  {origin}")


@config.command("init")
@click.argument("stage")
@output_option
@force_option
@click.pass_context
def init(ctx: click.Context, stage: str, output: Path | None, force: bool) -> None:
    """Print a commented config for a stage, such as sft."""
    from bumblecore_core.config.starter import starter_yaml

    _give(lambda: starter_yaml(stage, app_of(ctx).registry()), output, force=force)


def _give(make: Callable[[], str], output: Path | None, *, force: bool) -> None:
    """Print the text, or write it to the file `output`. Raises `RunError` BC069, BC042 or BC045."""
    if output is None:
        echo(make().rstrip("\n"))
        return
    check_output_file(output, force=force, field="--output")
    write_output_file(output, (make().rstrip("\n") + "\n").encode(), field="--output")
    echo(f"wrote {output}", err=True)
