"""What `bumble run` and `bumble plan` print."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

from bumblecore_core.run.checkpoint.folder import list_checkpoints
from bumblecore_core.run.execute import Outcome
from bumblecore_core.toolkit.adapters import adapter_chain
from bumblecore_core.toolkit.json_files import read_json_object
from bumblecore_core.toolkit.scorers import is_scorer
from bumblecore_core.toolkit.summary import summary_lines
from bumblecore_core.toolkit.terminal import echo
from bumblecore_core.toolkit.vision_language import loader_name
from bumblecore_core.values import RunInfo


def announce(info: RunInfo) -> None:
    """The start summary."""
    echo(f"bumble: {info.stage} → {info.output_dir}")
    for line in summary_lines(info):
        echo(line)


def ended(output_dir: str, outcome: Outcome, *, overwrite: bool = False) -> None:
    """Where everything is, and how it went. `overwrite`: the run was started with --overwrite."""
    result = outcome.result
    if outcome.reused:
        echo(f"complete: {output_dir} holds this very run already (--overwrite trains it again)")
        return
    echo(_how_it_went(outcome, overwrite=overwrite))
    if saving := _saving(result.summary):
        echo(saving)
    final = Path(output_dir) / "final"
    names = {
        "final": _loads(final) if final.is_dir() else "",  # an interrupted run has none
        "metrics.json": "metric history",
        "metrics.csv": "the same as a table",
        "training_loss.png": "loss curve",
        "tensorboard": f"see it with: tensorboard --logdir {output_dir}",
        "logs/train.log": "everything that was said",
        "run.yaml": "resolved config",
        "run.lock.json": "plugins, versions, data fingerprints",
    }
    for name, what in names.items():
        path = Path(output_dir) / name
        if path.exists():
            echo(f"  {path}  {what}")
    checkpoints = [checkpoint for checkpoint in list_checkpoints(Path(output_dir)) if checkpoint.manifest]
    if checkpoints:
        kept = ", ".join(checkpoint.path.name for checkpoint in checkpoints)
        echo(f"  {output_dir}  {kept}")


def _loads(final: Path) -> str:
    """What the final model is, and what takes it."""
    base, adapters = adapter_chain(final)
    scores = is_scorer(base, adapters)
    config = {} if adapters else read_json_object(base / "config.json", "output_dir")
    language_model = loader_name(config.get("model_type", ""), config.get("architectures") or [])
    whole = "AutoModelForSequenceClassification" if scores else language_model
    what, loader = ("adapter", "PeftModel") if adapters else ("model", whole)
    loads = f"{what}, loads with {loader}.from_pretrained"
    return f"reward {loads}" if scores else f"{loads} and `bumble generate`"


def _how_it_went(outcome: Outcome, *, overwrite: bool) -> str:
    result = outcome.result
    figures = f"{result.steps:,} steps, {result.seconds:.1f} s"
    if "loss" in result.summary:
        figures += f", loss {result.summary['loss']:.4f}"
    if "eval_loss" in result.summary:
        figures += f", evaluation loss {result.summary['eval_loss']:.4f}"
    if skipped := int(result.summary.get("skipped_steps", 0)):
        figures += f", {skipped:,} skipped because a loss or gradient was not finite"
    if result.status == "complete":
        return f"complete: {figures}"
    name = signal.Signals(outcome.stopped_by).name
    if result.steps == 0:
        return f"interrupted by {name} before the first step was done: nothing was saved"
    again = "the same command without --overwrite resumes it" if overwrite else "the same command goes on from there"
    return f"interrupted by {name}: {figures}; saved, and {again}"


def _saving(summary: Mapping[str, float]) -> str | None:
    """What checkpoints cost."""
    count = int(summary.get("checkpoints", 0))
    if not count:
        return None
    line = f"saving: {count} checkpoint{'s' * (count > 1)} took {summary['saving_share']:.1%} of the training time"
    beside = summary["saving_background_seconds"]
    return line + (f", and {beside:.1f} s beside it" if beside else "")
