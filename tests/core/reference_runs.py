"""As much of a run with a reference model as its figures depend on: plans, stores, an engine, options."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pydantic import Field

from bumblecore_core.protocols import Reference
from bumblecore_core.records import Options
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.run.vocabulary import Vocabulary
from core.loop_ranks import RANKS, Group

COLUMNS = ("chosen", "rejected")


class SomeOptions(Options):
    number: int = Field(1, description="Any number.")
    path: str | None = Field(None, description="A model's directory.")


def build(**changes):
    raise AssertionError("nothing is built")


@dataclass
class Store:
    """A token store of `count` rows that keeps what is attached to it."""

    directory: Path
    content: str = "content"
    count: int = 39
    attached: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def attach(self, values):
        self.attached = values


def make_plan(*, rows=range(39), weights=(1.0,), epochs=None, max_steps=None, **options) -> BatchPlan:
    settings = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "world_size": 1, "seed": 0}
    return BatchPlan(
        lengths=np.asarray([3 + row % 5 for row in range(39)], dtype=np.int32),
        counts=np.ones(39, dtype=np.int32),
        rows=np.asarray(rows),
        options=PlanOptions(**{**settings, "packing": False, "max_length": 16, **options}),
        weights=weights,
        epochs=epochs if epochs or max_steps else 1.0,
        max_steps=max_steps,
    )


def selected(name: str, **changes: Any) -> SimpleNamespace:
    """A chosen plugin with its options."""
    return SimpleNamespace(name=name, options=SomeOptions(**changes), record=SimpleNamespace(name=name, build=build))


def make_prepared(
    directory: Path, *, reference="start", adapter=None, stage=None, engine="torch", **changes: Any
) -> Any:
    """A prepared run. `changes`: of its plans and stores, or by `section__key` of its config."""
    config: dict[str, dict[str, Any]] = {
        "data": {"cache_dir": str(directory / "cache")},
        "train": {"seed": 0, "logging_steps": 1},
        "model": {"trust_remote_code": False, "attention": "sdpa"},
        "checkpoint": {"save_steps": 1},
    }
    for name in [name for name in changes if "__" in name]:
        section, key = name.split("__")
        config[section][key] = changes.pop(name)
    loss = SimpleNamespace(name="dpo", loss_kind="preference", needs_reference=True)
    parts = {
        "model_dir": directory / "model",
        "plan": make_plan(),
        "eval_plan": None,
        "store": Store(directory / "store"),
        "vocabulary": Vocabulary(rows=256),
        **changes,
    }
    parts.setdefault("eval_store", parts["store"])
    return SimpleNamespace(
        resolved=SimpleNamespace(
            config=SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in config.items()}),
            stage=stage or selected("dpo"),
            loss=SimpleNamespace(record=loss),
            adapter=adapter,
            engine=SimpleNamespace(name=engine),
        ),
        stage=SimpleNamespace(reference=Reference(model=reference, columns=COLUMNS)),
        **parts,
    )


def make_engine(**changes: Any) -> SimpleNamespace:
    """One rank alone on a CPU."""
    fields = {
        "rank": 0,
        "world_size": 1,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "barrier": lambda: None,
    }
    return SimpleNamespace(**{**fields, "sum_over_ranks": list, **changes})


def on_two_ranks(action) -> list[Any]:
    """What `action(engine)` gives on each rank."""
    group = Group()

    def of_rank(rank):
        return action(make_engine(rank=rank, world_size=RANKS, sum_over_ranks=lambda values: group.sum(rank, values)))

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(of_rank, range(RANKS)))
