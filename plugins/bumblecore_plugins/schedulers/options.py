"""Options of the learning-rate schedules, each schedule with those that it reads and no others."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from bumblecore_core import Options

_CYCLES = "Waves of the cosine; 0.5 falls once from the peak to the end."
Shape = Literal["linear", "cosine", "1-sqrt"]


class WarmupOptions(Options):
    """Options of `linear` and `constant_with_warmup`, shared by every schedule that warms up."""

    warmup_ratio: float | None = Field(
        None, ge=0, le=1, description="Share of the run's steps over which the rate rises from 0, rounded up."
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps over which the rate rises from 0, instead of warmup_ratio."
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> WarmupOptions:
        _exclusive(warmup_ratio=self.warmup_ratio, warmup_steps=self.warmup_steps)
        return self

    def resolved_warmup(self, total_steps: int) -> int:
        """Warm-up steps of a run of `total_steps`."""
        return _steps(self.warmup_steps, self.warmup_ratio or 0.0, total_steps)


class CosineOptions(WarmupOptions):
    """Options of `cosine`."""

    num_cycles: float = Field(0.5, gt=0, description=_CYCLES)


class RestartOptions(WarmupOptions):
    """Options of `cosine_with_restarts`."""

    num_cycles: int = Field(1, ge=1, description="How many times the rate falls from its peak.")


class PolynomialOptions(WarmupOptions):
    """Options of `polynomial`."""

    power: float = Field(1.0, gt=0, description="Exponent of the decay; 1 is linear.")
    lr_end: float = Field(1e-7, ge=0, description="Learning rate at the end; below the optimizer's.")


class InverseSqrtOptions(WarmupOptions):
    """Options of `inverse_sqrt`."""

    timescale: int | None = Field(
        None,
        ge=1,
        description="Steps after which the decay sets in; the warm-up's, or 10000 without one, when not set.",
    )


class MinLrOptions(WarmupOptions):
    """Options of `cosine_with_min_lr`."""

    num_cycles: float = Field(0.5, gt=0, description=_CYCLES)
    min_lr: float | None = Field(None, ge=0, description="Learning rate at the end.")
    min_lr_rate: float | None = Field(
        None, ge=0, le=1, description="The end's share of the peak, instead of min_lr; 0.1 when neither is set."
    )

    @model_validator(mode="after")
    def _one_minimum(self) -> MinLrOptions:
        _exclusive(min_lr=self.min_lr, min_lr_rate=self.min_lr_rate)
        return self


class StableDecayOptions(WarmupOptions):
    """Options of `warmup_stable_decay` (Hu et al. 2024, "MiniCPM"; 1-sqrt: Hägele et al. 2024)."""

    decay_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the steps over which the rate falls at the end; 0.1 when nothing is set.",
    )
    num_decay_steps: int | None = Field(None, ge=0, description="Steps of that fall, instead of decay_ratio.")
    warmup_type: Shape = Field("linear", description="Form of the rise.")
    decay_type: Shape = Field("cosine", description="Form of the fall.")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="The start's and the end's share of the peak.")
    num_cycles: float = Field(0.5, gt=0, description="Waves of a cosine rise or fall.")

    @model_validator(mode="after")
    def _one_decay(self) -> StableDecayOptions:
        _exclusive(decay_ratio=self.decay_ratio, num_decay_steps=self.num_decay_steps)
        return self

    def resolved_decay(self, total_steps: int) -> int:
        """Decay steps of a run of `total_steps`."""
        return _steps(self.num_decay_steps, 0.1 if self.decay_ratio is None else self.decay_ratio, total_steps)


class PlateauOptions(Options):
    """Options of `reduce_on_plateau`: it looks at each evaluation's loss."""

    factor: float = Field(0.1, gt=0, lt=1, description="What the rate is multiplied by.")
    patience: int = Field(10, ge=0, description="Evaluations without improvement that are let pass.")
    threshold: float = Field(1e-4, ge=0, description="How much lower a loss must be to count as an improvement.")
    threshold_mode: Literal["rel", "abs"] = Field("rel", description="Whether threshold is a share or a difference.")
    cooldown: int = Field(0, ge=0, description="Evaluations to wait after a reduction.")
    min_lr: float = Field(0.0, ge=0, description="Lowest learning rate.")
    eps: float = Field(1e-8, ge=0, description="A smaller change of the rate is not made.")


def _exclusive(**values: object) -> None:
    given = [name for name, value in values.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"conflict: {' and '.join(given)} are both set; keep one of them")


def _steps(steps: int | None, ratio: float, total_steps: int) -> int:
    return steps if steps is not None else math.ceil(ratio * total_steps)
