"""A small registry of test records, so that config tests do not depend on the built-in plugins."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bumblecore_core import records
from bumblecore_core.errors import Problem
from bumblecore_core.records import Options
from bumblecore_core.registry import PluginInfo, Provided, Registry

INFO = PluginInfo(name="tests", distribution="bumblecore", version="0", module="tests", status="loaded")


class Colour(Enum):
    red = "red"
    off = "off"


class AdamwOptions(Options):
    lr: float = Field(1e-3, gt=0, description="Learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Moments.")
    folder: Path | None = Field(None, description="A path.")
    colour: Colour = Field(Colour.red, description="A colour.")
    mode: Literal["on", "off"] = Field("on", description="A word that YAML reads as a truth value.")


class WarmupOptions(Options):
    warmup_ratio: float | None = Field(None, ge=0, le=1, description="Share.")
    warmup_steps: int | None = Field(None, ge=0, description="Steps.")

    @model_validator(mode="after")
    def _one(self) -> WarmupOptions:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("warmup_ratio conflicts with warmup_steps")
        return self


class ShardedOptions(Options):
    parts: int = Field(1, ge=1, description="Divides the same work in another way.")
    clip: float = Field(1.0, description="Changes the numbers.")


class LoraOptions(Options):
    rank: int = Field(8, ge=1, description="Rank.")
    target_modules: list[str] | Literal["all"] = Field("all", description="Modules.")


class Inner(Options):
    depth: int = Field(2, description="Depth.")


class OddOptions(Options):
    size: int = Field(gt=3, description="Has no default.")
    label: str = Field(min_length=2, description="Has no default either.")
    share: float = Field(gt=0, lt=1, description="Nor this.")
    inner: Inner = Field(Inner(), description="A nested model.")
    extra: dict[str, Any] = Field({}, description="Anything.")


class LossOptions(Options):
    z_loss: float = Field(0.0, ge=0, description="Coefficient.")


class RaisingOptions(Options):
    size: int = Field(1, description="Any.")

    @model_validator(mode="before")
    @classmethod
    def _raise(cls, value: Any) -> Any:
        raise KeyError("defect")


def _build(**kwargs: Any) -> Any:
    raise AssertionError("resolution builds nothing")


def _stage(name: str, **changes: Any) -> records.StageRecord:
    defaults: dict[str, Any] = {"reads": "text", "loss_kind": "token", "default_loss": "causal_lm"}
    return records.StageRecord(name=name, summary=f"The stage {name}.", build=_build, **{**defaults, **changes})


def make_registry() -> Registry:
    make: list[records.Record] = [
        _stage("sft"),
        _stage("pretrain", model_from="config"),
        _stage("dpo", reads="preference", loss_kind="preference", default_loss="dpo_sigmoid"),
        _stage("odd", options=OddOptions),
        _loss("causal_lm", "token"),
        _loss("causal_lm_naive", "token"),
        _loss("dpo_sigmoid", "preference"),
        records.OptimizerRecord(name="adamw", summary="AdamW.", build=_build, options=AdamwOptions),
        records.OptimizerRecord(name="raising", summary="Broken.", build=_build, options=RaisingOptions),
        records.OptimizerRecord(name="sgd", summary="SGD.", build=_build),
        records.SchedulerRecord(name="cosine", summary="Cosine.", build=_build, options=WarmupOptions),
        records.SchedulerRecord(name="plateau", summary="Plateau.", build=_build, needs_metric=True),
        records.EngineRecord(name="torch", summary="Torch.", build=_build),
        records.EngineRecord(
            name="sharded", summary="Sharded.", build=_build, options=ShardedOptions, reshaping=("parts",)
        ),
        records.AdapterRecord(name="lora", summary="LoRA.", build=_build, options=LoraOptions),
        records.DataFormatRecord(name="alpaca", summary="Alpaca.", build=_build, detect=lambda row: None),
        records.DataFormatRecord(name="text", summary="Text.", build=_build, detect=lambda row: None),
        records.AttentionRecord(name="varlen", summary="SDPA.", load=_build, unsupported=_build),
    ]
    loggers = ("progress", "log_file", "metrics_json", "tensorboard", "loss_plot")
    make += [records.LoggerRecord(name=name, summary=f"{name}.", build=_build) for name in loggers]
    return Registry([Provided(record, INFO) for record in make], [INFO])


def _loss(name: str, kind: Any) -> records.LossRecord:
    return records.LossRecord(name=name, summary=f"{name}.", build=_build, loss_kind=kind, options=LossOptions)


MINIMAL = """\
stage: sft
model:
  path: base
data:
  path: rows.jsonl
output_dir: out
"""


def brief(problems: list[Problem]) -> list[tuple[str, str, str]]:
    """Code, place and field of each."""
    return [(problem.code, problem.place, problem.field) for problem in problems]
