"""The token shards and batch plans that a run's configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import ConfigError, one
from bumblecore_core.protocols import Stage
from bumblecore_core.registry import Registry
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.run.data.prepare import prepare_store
from bumblecore_core.run.data.store import TokenStore
from bumblecore_core.run.stage_factory import StageFactory


@dataclass(frozen=True)
class Shards:
    """What the token shards of a run are made from. `since`: when the run began (Unix seconds); what was verified on
    this host after that counts for all its processes."""

    resolved: ResolvedRun
    registry: Registry
    stage: Stage
    factory: StageFactory
    tokenizer_fingerprint: str
    progress: bool
    since: float | None = None

    def store(self, files: Any, formats: Any, field: str) -> TokenStore:
        """The token store of `files`, made or reused; `field`: the config key that names them."""
        data = self.resolved.config.data
        return prepare_store(
            files=files,
            formats=formats,
            registry=self.registry,
            stage=self.stage,
            stage_record=self.resolved.stage.record,
            stage_options=self.resolved.stage.options,
            make_stage=self.factory,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            rendering=self.factory.rendering(),
            data=data,
            progress=self.progress,
            field=field,
            since=self.since,
        )


def plan_of(
    resolved: ResolvedRun, store: TokenStore, rows: np.ndarray, world_size: int, *, evaluation: bool = False
) -> BatchPlan:
    """The batch plan of some rows of a store: all of them once in order where it is for `evaluation`."""
    config = resolved.config
    options = PlanOptions(
        micro_batch_size=config.train.micro_batch_size,
        gradient_accumulation_steps=1 if evaluation else config.train.gradient_accumulation_steps,
        world_size=world_size,
        seed=config.train.seed,
        packing=config.data.packing,
        max_length=config.data.max_length,
        shuffle=not evaluation,
    )
    return BatchPlan(
        lengths=store.lengths,
        counts=store.counts,
        rows=rows,
        options=options,
        sources=store.sources,
        weights=[1.0] * len(store.files) if evaluation else store.weights,
        epochs=1.0 if evaluation else config.train.epochs,
        max_steps=None if evaluation else config.train.max_steps,
    )


def may_share_prefixes(stage: Stage, *stores: TokenStore) -> bool:
    """Whether batches may have `shared_prefixes`: the stage makes such, and some example asks for it where examples say
    so in a column."""
    asked = any("prefixes" not in store.columns or store.has_values("prefixes") for store in stores)
    return asked and bool(getattr(stage, "shares_prefixes", False))


def evaluation_warnings(store: TokenStore, eval_store: TokenStore) -> list[str]:
    """Damaged shards, cut examples and skipped rows of `data.eval_path`; the report of `store` is shown in full."""
    if eval_store.directory == store.directory:
        return []
    report = eval_store.report
    lines = [line for line in report.warning_lines() if line.startswith(("BC066", "BC075"))]
    lines += [f"{count:,} evaluation rows skipped: {reason}" for reason, count in report.skipped_lines()]
    return [f"{line} ({eval_store.directory})" for line in lines]


def require_rows(resolved: ResolvedRun, stage: Stage, world_size: int) -> None:
    """Raises `ConfigError` BC039 where optimizer steps hold fewer rows than the stage needs."""
    config, least = resolved.config, getattr(stage, "least_rows", 1)
    rows = config.train.micro_batch_size * config.train.gradient_accumulation_steps * world_size
    if rows < least and not config.data.packing:
        problem = (
            f"the stage '{resolved.stage.name}' with these options needs {least} rows or more in an optimizer step"
        )
        fix = f"Raise it, or train.gradient_accumulation_steps, to {least} or more, or change the stage's options"
        raise one(ConfigError, "BC039", problem, fix, field="train.micro_batch_size")
