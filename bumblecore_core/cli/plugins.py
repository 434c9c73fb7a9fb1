"""`bumble plugins`: what is installed, and the options of one plugin."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from bumblecore_core.cli.root import CORE_COMMANDS, AppContext, app_of
from bumblecore_core.errors import PluginError, did_you_mean
from bumblecore_core.registry import PluginInfo, Provided, Registry, collect, describe_options, discover, singular
from bumblecore_core.registry.collect import clash
from bumblecore_core.registry.lookup import KINDS
from bumblecore_core.toolkit.terminal import echo, to_json


@click.group()
def plugins() -> None:
    """List plugins; show one plugin's options."""


@plugins.command("list")
@click.option("--load", is_flag=True, help="Import third-party plugins too, to list what they provide.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_plugins(ctx: click.Context, load: bool, as_json: bool) -> None:
    """List what a config can choose from, and where it comes from.

    Installed third-party plugins are listed from their metadata, without importing them, unless --load is given.
    """
    app = app_of(ctx)
    found, problems = discover(app.switches)
    imported = [info for info in found if load or info.builtin or info.local]
    waiting = [info for info in found if info not in imported]
    registry, more = collect(imported)
    problems += more + _reserved(registry)
    infos = [*registry.plugins, *waiting]
    echo(_as_json(app, registry, infos) if as_json else _as_text(app, registry, infos))
    if problems:
        error = PluginError(problems)
        echo(error.render(), err=True)
        sys.exit(error.exit_code)


@plugins.command("show")
@click.argument("kind")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the options' JSON Schema.")
@click.pass_context
def show_plugin(ctx: click.Context, kind: str, name: str, as_json: bool) -> None:
    """Show a plugin's options: their types, defaults and descriptions.

    KIND is a kind of `bumble plugins list`, in the singular or the plural: `bumble plugins show loss causal_lm`.
    """
    item = app_of(ctx).registry().provided(_kind(kind), name)
    if as_json:
        options = getattr(item.record, "options", None)
        shown = {**_record_data(item), "options": options.model_json_schema() if options else None}
        echo(to_json(shown, indent=2))
        return
    echo(_details(item))


def _kind(word: str) -> str:
    """The kind that a user means: `loss`, `losses`, `data-format` and `data_formats` are all understood."""
    plain = word.lower().replace("-", "_")
    kinds = {**{kind: kind for kind in KINDS}, **{singular(kind).replace(" ", "_"): kind for kind in KINDS}}
    if plain not in kinds:
        hint = did_you_mean(plain, [singular(kind).replace(" ", "_") for kind in KINDS])
        raise click.BadParameter(f"there is no kind of plugin called '{word}'; {hint}", param_hint="KIND")
    return kinds[plain]


def _reserved(registry: Registry) -> list[Any]:
    return [
        clash(item.record, "bumblecore's core", item.plugin.origin)
        for item in registry.all("commands")
        if item.record.name in CORE_COMMANDS
    ]


def _as_json(app: AppContext, registry: Registry, infos: Sequence[PluginInfo]) -> str:
    data = {
        "records": [_record_data(item) for kind in KINDS for item in registry.all(kind)],
        "plugins": [vars(info) for info in infos],
        "switches": vars(app.switches),
    }
    return to_json(data, indent=2)


def _record_data(item: Provided) -> dict[str, Any]:
    return {
        "kind": item.record.kind,
        "name": item.record.name,
        "summary": item.record.summary,
        "plugin": item.plugin.name,
        "distribution": item.plugin.distribution,
        "version": item.plugin.version,
        "module": item.plugin.module,
    }


def _as_text(app: AppContext, registry: Registry, infos: Sequence[PluginInfo]) -> str:
    rows = [
        (singular(kind), item.record.name, item.record.summary, _source(item.plugin), item.plugin.module)
        for kind in KINDS
        for item in registry.all(kind)
    ]
    blocks = [_table(("KIND", "NAME", "SUMMARY", "FROM", "MODULE"), rows)] if rows else ["No plugin is loaded."]
    waiting = [(info.name, _source(info), info.module) for info in infos if info.status == "found"]
    if waiting:
        blocks.append("Installed, not imported (--load lists what they provide):\n" + _table(None, waiting))
    off = [(info.name, _source(info), info.module) for info in infos if info.status == "off"]
    if off:
        blocks.append("Switched off:\n" + _table(None, off))
    failed = [info for info in infos if info.status in ("failed", "refused")]
    if failed:
        lines = [f"  {info.code} {info.name} of {info.origin}: {info.error}" for info in failed]
        blocks.append("Failed:\n" + "\n".join(lines))
    if app.switches.describe():
        blocks.append("Switches:\n" + "\n".join(f"  {line}" for line in app.switches.describe()))
    return "\n\n".join(blocks)


def _source(info: PluginInfo) -> str:
    return f"{info.distribution} {info.version}".strip()


def _details(item: Provided) -> str:
    record = item.record
    lines = [f"{record.name} ({singular(record.kind)}): {record.summary}", f"from {item.plugin.origin}"]
    options = getattr(record, "options", None)
    described = describe_options(options) if options else []
    if not described:
        return "\n".join([*lines, "", "It has no options."])
    width = shutil.get_terminal_size((100, 20)).columns
    for option in described:
        default = "required" if option.default == "required" else f"default {option.default}"
        lines += ["", f"  {option.name}: {option.type}, {default}"]
        lines += textwrap.wrap(option.description, max(40, width), initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _table(header: tuple[str, ...] | None, rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their longest cell; nothing is cut, so that output can be searched and piped."""
    cells = [header, *rows] if header else list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    indent = "" if header else "  "
    return "\n".join(
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
