"""`bumble config`: the schema for editors, a run's resolved values with their origins, and a file to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bumblecore_core.cli.root import app_of
from bumblecore_core.cli.sets import set_option
from bumblecore_core.errors import ConfigError, one

output_option = click.option("-o", "--output", metavar="FILE", help="Write to this file instead of the terminal.")


@click.group()
def config() -> None:
    """Show, start, or describe a run's configuration."""


@config.command("schema")
@output_option
@click.pass_context
def schema(ctx: click.Context, output: str | None) -> None:
    """Print the JSON Schema of a config, with the options of every installed plugin.

    An editor that reads `# yaml-language-server: $schema=bumble.schema.json` completes and checks with it.
    """
    from bumblecore_core.config.json_schema import config_schema

    text = json.dumps(config_schema(app_of(ctx).registry()), indent=2, ensure_ascii=False)
    _give(text, output, overwrite=True)


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
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    plain = run.to_dict()
    values = [(dotted(key), json.dumps(lookup(plain, key), ensure_ascii=False)) for key in leaves(plain)]
    rows = [(key, value, run.origins[key]) for key, value in values]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, origin in rows:
        click.echo(f"{key:<{widths[0]}}  {value:<{min(widths[1], 48)}}  {origin}")


@config.command("init")
@click.argument("stage")
@output_option
@click.pass_context
def init(ctx: click.Context, stage: str, output: str | None) -> None:
    """Print a commented config for a stage, such as sft. An existing file is never overwritten."""
    from bumblecore_core.config.starter import starter_yaml

    _give(starter_yaml(stage, app_of(ctx).registry()), output, overwrite=False)


def _give(text: str, output: str | None, *, overwrite: bool) -> None:
    """Print `text`, or write it to the file `output`. Raises `ConfigError` BC069 or BC042."""
    if output is None:
        click.echo(text.rstrip("\n"))
        return
    try:
        with Path(output).open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n")
    except FileExistsError:
        raise one(ConfigError, "BC069", "the file exists", "Choose another name, or remove it", place=output) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise one(ConfigError, "BC042", f"cannot write: {reason}", "Choose another place", place=output) from None
    click.echo(f"Wrote {output}", err=True)
