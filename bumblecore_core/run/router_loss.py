"""The routers' auxiliary loss and the load of the experts as parts of training."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import BumbleError, ConfigError, one
from bumblecore_core.run.model import meta_model
from bumblecore_core.toolkit.routers import (
    AuxiliaryLoss,
    Router,
    Routing,
    experts_per_token,
    find_auxiliary_loss,
    find_routers,
    recorded,
    stated_coefficient,
)
from bumblecore_core.toolkit.vision_language import without_adapter
from bumblecore_core.values import Metric, StepOutput

FIELD, FEATURE = "model.router_aux_loss", "router auxiliary loss"
Setting = float | Literal["auto", "off"]


@dataclass(frozen=True, kw_only=True)
class RouterTraining:
    """What a run records of a model's routers, and adds to its loss."""

    model_type: str
    routers: tuple[Router, ...]
    top_k: int | None
    """Experts that a token passes through; None where the model does not state it."""
    auxiliary: AuxiliaryLoss | None
    """None where the auxiliary loss is off."""
    coefficient: float = 0.0
    """What the auxiliary loss is multiplied by."""

    def recorded(self) -> AbstractContextManager[Routing]:
        """Records the routers inside the context."""
        return recorded(self.routers)

    def complete(self, output: StepOutput, routing: Routing) -> StepOutput:
        """A micro-batch's output with the auxiliary loss and the assignments of its experts.

        The loss sum grows by coefficient × auxiliary loss × count: after the division by the optimizer step's count,
        the step's auxiliary loss is the mean over micro-batches and ranks, weighted by their counts. Raises
        `ConfigError` BC100 where no router was called.
        """
        output = replace(output, expert_assignments=routing.assignments(self.top_k))
        if self.auxiliary is None:
            return output
        logits = routing.logits()
        if not logits:
            raise _unavailable(f"the routers of the model type '{self.model_type}' are not called as modules")
        auxiliary = self.auxiliary(logits).to(output.loss_sum)
        figures = {
            "task_loss": Metric(total=output.loss_sum.detach(), weight=output.count),
            "router_aux_loss": Metric(total=auxiliary.detach() * output.count, weight=output.count),
        }
        loss_sum = output.loss_sum
        if self.coefficient:
            loss_sum = loss_sum + self.coefficient * output.count * auxiliary
        return replace(output, loss_sum=loss_sum, metrics={**output.metrics, **figures})


def router_training(model: Any, setting: Setting) -> tuple[RouterTraining | None, list[tuple[str, str]]]:
    """What to record of a model's routers (None without routers), and lines for the start summary.

    `setting`: the value of `model.router_aux_loss`. Raises `ConfigError` BC100 for a coefficient where the model has no
    routers or transformers defines no auxiliary loss for its type.
    """
    inner = without_adapter(model)
    config = inner.config.get_text_config()
    routers, auxiliary = find_routers(inner), find_auxiliary_loss(inner)
    if not routers:
        if isinstance(setting, float):
            raise _unavailable(f"the model type '{config.model_type}' has no routers that transformers records")
        return None, []
    if auxiliary is None and isinstance(setting, float):
        raise _unavailable(f"the auxiliary loss is not available for the model type '{config.model_type}'")
    coefficient, why = _decision(inner, setting, available=auxiliary is not None)
    training = RouterTraining(
        model_type=config.model_type,
        routers=routers,
        top_k=experts_per_token(inner),
        auxiliary=None if coefficient is None else auxiliary,
        coefficient=coefficient or 0.0,
    )
    return training, [(FEATURE, why)]


def require_routers(resolved: ResolvedRun, directory: Path) -> None:
    """Raises `ConfigError` BC100 for a coefficient that the model in `directory` cannot use. Reads no weights."""
    section = resolved.config.model
    if isinstance(section.router_aux_loss, float):
        head, trust = resolved.stage.record.head, section.trust_remote_code
        router_training(meta_model(directory, trust_remote_code=trust, head=head), section.router_aux_loss)


def _decision(model: Any, setting: Setting, *, available: bool) -> tuple[float | None, str]:
    """(coefficient, or None where the loss is off; the line for the summary)."""
    config = model.config.get_text_config()
    if setting == "off":
        return None, f"off ({FIELD})"
    if not available:
        return None, f"off: not available for the model type '{config.model_type}'"
    if isinstance(setting, float):
        return setting, f"{setting:g} × the load-balancing loss of each micro-batch ({FIELD})"
    coefficient = stated_coefficient(model)
    if coefficient is None:
        return None, f"off (config.json has no coefficient); set {FIELD} to one, such as 0.001, to use it"
    if not getattr(config, "output_router_logits", False):
        return None, f"off (config.json: output_router_logits false); set {FIELD} to {coefficient:g} to use it"
    return coefficient, f"{coefficient:g} × the load-balancing loss of each micro-batch (config.json)"


def _unavailable(problem: str) -> BumbleError:
    return one(ConfigError, "BC100", problem, "Set it to auto or off", field=FIELD)
