"""Built-in adapters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from bumblecore_core import AdapterRecord, Options, hookimpl
from bumblecore_core.toolkit.packages import require_supported

if TYPE_CHECKING:
    from bumblecore_core.protocols import Adapter

BUMBLECORE_HOOK_API = 1
ALL_LINEAR, ALL_EXPERTS = "all-linear", "all-experts"
INITS = ("default", "gaussian", "orthogonal", "olora", "pissa")
PISSA_ITERATIONS = re.compile(r"pissa_niter_[1-9]\d{0,3}")


class LoraOptions(Options):
    """Options of `lora` (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"), trained with PEFT."""

    rank: int = Field(8, ge=1, description="Rank of the update: A is (rank, in), B is (out, rank).")
    alpha: float | None = Field(None, gt=0, description="The update is scaled by alpha ÷ rank; null: 2 × rank.")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout on the input of A; null: 0, or that of the adapter in `path`."
    )
    target_modules: list[str] | str = Field(
        ALL_LINEAR,
        description="Modules to adapt: a list of names or of endings of names, all-linear (every linear layer but the "
        "output head), or a regular expression that a whole name must match.",
    )
    target_parameters: list[str] | Literal["all-experts"] | None = Field(
        None,
        description="Parameters to adapt that are no modules: a list of names or of endings of names, or all-experts "
        "(every fused expert).",
    )
    modules_to_save: list[str] = Field(
        [], description="Modules trained in full and saved with the adapter, such as lm_head; names or endings."
    )
    bias: Literal["none", "lora_only", "all"] = Field(
        "none", description="Biases to train: none, those of the adapted modules (lora_only), or all."
    )
    use_rslora: bool = Field(False, description="Scale by alpha ÷ √rank (rsLoRA).")
    use_dora: bool = Field(False, description="Train each weight's magnitude apart from its direction (DoRA).")
    init: str = Field(
        "default",
        description="How A and B start: default (B is zero), gaussian, orthogonal, olora, pissa, or pissa_niter_N with "
        "N iterations of a fast decomposition.",
    )
    lr_ratio: float = Field(1.0, gt=0, description="Learning rate of B ÷ that of A (LoRA+).")
    path: str | None = Field(
        None,
        description="An adapter directory, or a run's output directory, to train further; its config sets rank, "
        "targets and everything else but dropout.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_dropout(cls, given: Any) -> Any:
        """Only an adapter that `path` names has a dropout of its own."""
        if isinstance(given, dict) and given.get("path") is None and given.get("dropout") is None:
            return {**given, "dropout": 0.0}
        return given

    @field_validator("target_modules")
    @classmethod
    def _says_something(cls, value: list[str] | str) -> list[str] | str:
        if value == "" or (isinstance(value, list) and not all(value)):
            raise ValueError("name at least one module")
        if isinstance(value, str):
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:  # the latter: a repetition or nesting too large
                raise ValueError(f"not a regular expression: {error}") from error
        return value

    @field_validator("init")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in INITS and not PISSA_ITERATIONS.fullmatch(value):
            raise ValueError(f"known are {', '.join(INITS)} and pissa_niter_N")
        return value

    @model_validator(mode="after")
    def _agree(self) -> LoraOptions:
        if self.path is not None:
            own = (
                "rank",
                "alpha",
                "target_modules",
                "target_parameters",
                "modules_to_save",
                "bias",
                "use_rslora",
                "use_dora",
                "init",
            )
            both = [name for name in own if getattr(self, name) != type(self).model_fields[name].default]
            if both:
                raise ValueError(f"conflict: path names an adapter that says for itself what is also in {_list(both)}")
        if not self.target_modules and not self.target_parameters:
            raise ValueError("name at least one module in target_modules, or parameters in target_parameters")
        if self.target_parameters is not None:
            both = [name for name in ("dropout", "use_dora") if getattr(self, name)]
            both += ["init"] if self.init not in ("default", "gaussian") else []
            if both:
                raise ValueError(f"conflict: target_parameters and {_list(both)} cannot be combined")
        if changes_base(self.init):
            both = [name for name in ("dropout", "modules_to_save", "use_dora") if getattr(self, name)]
            if both:
                raise ValueError(f"conflict: init {self.init} and {_list(both)} cannot be combined")
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError("conflict: init orthogonal needs an even rank")
        if isinstance(self.target_modules, list):
            both = [name for name in self.modules_to_save if name in self.target_modules]
            if both:
                raise ValueError(f"conflict: {_list(both)} is in target_modules and in modules_to_save")
        return self


def changes_base(init: str) -> bool:
    """Whether an initialisation takes A and B out of the base weights, so that these are others while training."""
    return init == "olora" or init.startswith("pissa")


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _lora(*, options: Any) -> Adapter:
    require_supported("peft", field="adapter")
    from bumblecore_plugins.adapters.lora import Lora

    return Lora(options)


@hookimpl
def bumble_adapters() -> Sequence[AdapterRecord]:
    """LoRA and its relatives."""
    return [
        AdapterRecord(
            name="lora", summary="Low-rank updates of frozen weights, with PEFT.", build=_lora, options=LoraOptions
        )
    ]
