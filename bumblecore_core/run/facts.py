"""The facts that `bumble plan` and the start of a run show."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.config.schema import RunConfig
from bumblecore_core.run.data.bad_rows import SKIPPED_LOG
from bumblecore_core.run.data.plan import BatchPlan
from bumblecore_core.run.memory import MemoryInputs, Placement, estimate, readable
from bumblecore_core.toolkit.token_weights import as_count

if TYPE_CHECKING:
    import numpy as np

    from bumblecore_core.run.data.store import TokenStore

Facts = list[tuple[str, str]]
SHOWN_FILES = 20


def data_facts(store: TokenStore, rows: np.ndarray, eval_rows: int, plan: BatchPlan, *, token_loss: bool) -> Facts:
    """Rows, tokens, packing fill, and what was dropped or cut; the supervised share where the loss counts tokens, and
    the sum of their weights where they have any."""
    report = store.report
    tokens = int(store.lengths[rows].sum(dtype="int64"))
    supervised = as_count(store.counts[rows].sum(dtype="float64"))
    more = len(store.files) - SHOWN_FILES
    facts = [
        ("data", ", ".join(store.files[:SHOWN_FILES]) + (f" and {more:,} more" if more > 0 else "")),
        ("rows", f"{report.rows:,} read, {len(rows):,} training examples" + _held_out(eval_rows)),
        ("tokens", f"{tokens:,} in training examples, longest {int(store.lengths[rows].max()):,}"),
    ]
    if token_loss and store.has_values("weights"):
        facts.append(("supervised", f"tokens whose weights add up to {supervised:,.10g}"))
    elif token_loss:
        facts.append(("supervised", f"{supervised:,} ({supervised / tokens:.1%} of tokens)"))
    if plan.options.packing:
        facts.append(("packing fill", f"{plan.fill():.1%} of {plan.options.max_length} tokens"))
    facts += [("dropped", f"{count:,} rows: {reason}") for reason, count in report.dropped_lines()]
    facts += [("skipped", f"{count:,} rows: {reason}") for reason, count in report.skipped_lines()]
    if report.skipped:
        facts.append(("skipped", f"all of them are listed in {store.directory / SKIPPED_LOG}"))
    if report.truncated:
        facts.append(("truncated", f"{report.truncated:,} examples cut at data.max_length"))
    facts += [("warning", line) for line in report.warning_lines()]
    made = "reused, made earlier" if report.reused else f"made in {report.seconds:.1f} s"
    return [*facts, ("token shards", f"{made} ({store.directory})")]


def _held_out(eval_rows: int) -> str:
    return f", {eval_rows:,} for evaluation" if eval_rows else ""


def step_facts(config: RunConfig, plan: BatchPlan) -> Facts:
    """How rows become optimizer steps."""
    o = plan.options
    unit = "packed rows" if o.packing else "rows"
    batch = o.micro_batch_size * o.gradient_accumulation_steps * o.world_size
    devices = f" × {o.world_size} devices" if o.world_size > 1 else ""
    return [
        (
            "batch",
            f"{batch} {unit} a step: {o.micro_batch_size} in a micro-batch × {o.gradient_accumulation_steps} "
            f"accumulated{devices}",
        ),
        ("steps", f"{plan.total_steps:,} ({plan.epochs:.4g} epochs of {plan.window(0).total:,})"),
        ("output", config.output_dir),
    ]


def parameter_facts(parameters: int, trainable: int) -> Facts:
    """How many parameters there are, and which share of them is trained."""
    return [("parameters", f"{parameters:,}, trainable {trainable:,} ({trainable / parameters:.2%})")]


def memory_facts(
    config: RunConfig,
    model_config: Any,
    parameters: int,
    trainable: int,
    weight_bytes: int,
    plan: BatchPlan,
    placement: Placement,
) -> Facts:
    """Estimated memory of a rank by purpose for the largest micro-batch; `head` holds for the fused loss. What lies
    elsewhere is shown, and not counted; what config.json does not state is shown as unknown."""
    tokens, supervised = _largest_micro_batch(plan)
    estimated = estimate(
        MemoryInputs(
            parameters=parameters,
            trainable=trainable,
            weight_bytes=weight_bytes,
            master_weights=config.model.master_weights,
            float32_gradients=config.train.float32_gradients,
            gradient_checkpointing=config.model.gradient_checkpointing,
            tokens=tokens,
            supervised=supervised,
            config=model_config,
        )
    )
    ranks = plan.options.world_size
    sizes = estimated.sizes
    parts = {name: -(-size // ranks) if name in placement.sharded else size for name, size in sizes.items()}
    elsewhere = placement.elsewhere
    here = sum(size for name, size in parts.items() if name not in elsewhere)
    of_rank = " a rank" if ranks > 1 else ""
    without = f", {' and '.join(estimated.unknown)} not counted" if estimated.unknown else ""
    total = ("estimated memory", f"{readable(here)}{of_rank} for a micro-batch of {tokens:,} tokens{without}:")
    places = {name: f" ({elsewhere[name]}, not counted)" if name in elsewhere else "" for name in parts}
    known = [(f"  {name}", readable(size) + places[name]) for name, size in parts.items() if size]
    return [total, *known, *((f"  {name}", f"unknown: {why}") for name, why in estimated.unknown.items())]


def space_facts(config: RunConfig, weight_bytes: int, state_bytes: int) -> Facts:
    """A warning where the disk has too little room for the checkpoints and the final model (`state_bytes`: estimated of
    masters and two moments). Saving itself ends in an error when it comes to that."""
    section = config.checkpoint
    if section.save_steps is None and section.save_every is None:
        needed, what = weight_bytes * section.save_last, "the final model"
    else:
        kept = (section.save_total_limit or 1) + 1  # one more while the newest is written
        needed = kept * (weight_bytes + state_bytes) + weight_bytes * section.save_last
        what = f"{kept} checkpoints and the final model"
    directory = Path(config.output_dir)
    free = shutil.disk_usage(directory if directory.is_dir() else Path.cwd()).free
    if free >= needed:
        return []
    line = f"BC045 {directory}: {readable(free)} free on the disk, about {readable(needed)} wanted for {what}"
    return [("warning", line)]


def _largest_micro_batch(plan: BatchPlan, windows: int = 200) -> tuple[int, int]:
    """(tokens, supervised) of the largest among the micro-batches of the first epoch's first windows."""
    tokens, count = max(
        (int(plan.lengths[list(micro.rows)].sum()), micro.count)
        for step in range(min(windows, plan.total_steps, plan.window(0).total))
        for rank in plan.window(step).micro_batches
        for micro in rank
    )
    # A sum of weights says nothing of how many tokens there are: at most all of them.
    return tokens, count if isinstance(count, int) and count <= tokens else tokens
