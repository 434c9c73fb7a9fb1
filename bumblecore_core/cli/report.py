"""What `bumble run` and `bumble plan` print."""

from __future__ import annotations

from pathlib import Path

import click

from bumblecore_core.run.execute import Outcome
from bumblecore_core.toolkit.summary import summary_lines
from bumblecore_core.values import RunInfo


def announce(info: RunInfo) -> None:
    """The start summary."""
    click.echo(f"bumble: {info.stage} → {info.output_dir}")
    for line in summary_lines(info):
        click.echo(line)


def ended(output_dir: str, outcome: Outcome) -> None:
    """Where everything is, and how it went."""
    result = outcome.result
    if outcome.reused:
        click.echo(f"complete: {output_dir} holds this very run already (--overwrite trains it again)")
        return
    loss = result.summary.get("loss")
    line = f"complete: {result.steps:,} steps in {result.seconds:.1f} s"
    if loss is not None:
        line += f", loss {loss:.4f}"
    if "eval_loss" in result.summary:
        line += f", evaluation loss {result.summary['eval_loss']:.4f}"
    click.echo(line)
    names = {
        "final": "model, loads with from_pretrained and `bumble generate`",
        "metrics.json": "metric history",
        "logs/train.log": "everything that was said",
        "run.yaml": "resolved config",
        "run.lock.json": "plugins, versions, data fingerprints",
    }
    for name, what in names.items():
        path = Path(output_dir) / name
        if path.exists():
            click.echo(f"  {path}  {what}")
