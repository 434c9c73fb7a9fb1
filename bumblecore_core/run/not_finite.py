"""Looks for what made a loss or a gradient non-finite, once a run is about to end for it.

Nothing is measured while a run trains. The step's micro-batches are computed once more, without an update, and what the
loss is passed and gives is looked at: only where the model itself computed something that is not finite, from finite
weights, can the data or the learning rate be the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bumblecore_core.protocols import Engine
from bumblecore_core.run.assemble import Assembled, Prepared
from bumblecore_core.run.blame import Plugin, RunPlugins
from bumblecore_core.run.built import PLAUSIBLE_RATE, finite
from bumblecore_core.run.checked_loss import tensors_of
from bumblecore_core.run.data.loader import collate
from bumblecore_core.run.data.plan import Window
from bumblecore_core.run.module import TrainModule
from bumblecore_core.run.statistics import statistics_of
from bumblecore_core.toolkit.policy import Head
from bumblecore_core.values import Batch, StepOutput

ROWS_AT_ONCE = 64  # of the logits, which are not kept whole
REFERENCE = "reference"
FACTS = ("weights", "reference", "inputs", "loss", "gradient")
"""What may not be finite, each from finite ones before it."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why a loss or a gradient was not finite, as far as it can be told."""

    problem: str
    """A clause that follows the place in the error."""
    fix: str
    plugin: Plugin | None = None
    """The plugin at fault, where it is one."""
    rows: bool = True
    """Whether the step's rows may be the cause."""


UNEXPLAINED = Cause(problem="", fix="Lower optimizer.lr or look at these rows")


def cause_in(
    prepared: Prepared, assembled: Assembled, engine: Engine, window: Window, rates: Mapping[str, float], of_loss: bool
) -> Cause:
    """The cause of what was not finite in an optimizer step with the learning rates `rates`: its loss (`of_loss`), or
    its gradient alone. A collective."""
    micros = [
        (micro, collate(prepared.store, prepared.stage, micro.rows)) for micro in window.micro_batches[engine.rank]
    ]
    if statistics := statistics_of(engine, assembled.module):
        micros = statistics.complete(micros)
    batches = [batch for _, batch in micros]
    fact = first_fact(engine, assembled.module, batches)
    return _cause(fact, RunPlugins.of(prepared.resolved), max(rates.values(), default=0.0), of_loss)


def first_fact(engine: Engine, module: TrainModule, batches: Iterable[Batch]) -> str | None:
    """The first of `FACTS` that is not finite in this rank's `batches` of a step, or in another's. A collective."""
    found = dict.fromkeys(FACTS, False)
    found["weights"] = not _finite_weights(engine, module)
    if not _any(engine, found)["weights"]:
        watch = _Watch(found, module.loss)
        module.checked_loss.watch = watch
        try:
            for batch in batches:
                engine.evaluate(batch=batch.to(engine.device))
        finally:
            module.checked_loss.watch = None
    found = _any(engine, found)
    return next((fact for fact in FACTS if found[fact]), None)


class _Watch:
    """Notes the first thing in a loss's call that is not finite."""

    def __init__(self, found: dict[str, bool], loss: Any) -> None:
        self._found, self._loss = found, loss

    def __call__(self, inputs: Mapping[str, Any], output: StepOutput) -> None:
        references = [value for name, value in inputs.items() if name.startswith(REFERENCE) and value is not None]
        if not all(map(_finite, references)):
            self._found["reference"] = True
        elif not all(map(_finite, _numbers(inputs))):
            self._found["inputs"] = True
        elif not _finite(output.loss_sum):
            self._found["loss"] = True
        elif not self._finite_gradient(inputs):
            self._found["gradient"] = True

    def _finite_gradient(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the loss's gradient by what it is passed is finite; the head's is made of the same numbers."""
        leaves = {name: value for name, value in inputs.items() if _is_number(value) and not name.startswith(REFERENCE)}
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
            output = self._loss(**{**inputs, **leaves})
            gradients = torch.autograd.grad(output.loss_sum, list(leaves.values()), allow_unused=True)
        return all(_finite(gradient) for gradient in gradients if gradient is not None)


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _finite(value: torch.Tensor) -> bool:
    return not value.numel() or finite(value.detach())


def _numbers(inputs: Mapping[str, Any]) -> Iterable[torch.Tensor]:
    """What a loss is called with, and the logits that a head makes of its hidden states, some rows at a time."""
    yield from tensors_of(dict(inputs))
    head, hidden = inputs.get("head"), inputs.get("hidden")
    if isinstance(head, Head) and isinstance(hidden, torch.Tensor):
        for start in range(0, len(hidden), ROWS_AT_ONCE):
            yield head.logits(hidden[start : start + ROWS_AT_ONCE])


def _finite_weights(engine: Engine, module: TrainModule) -> bool:
    trained = {name for name, parameter in module.model.named_parameters() if parameter.requires_grad}
    state = engine.model_state(wanted=trained.__contains__)
    return all(map(_finite, state.values()))


def _any(engine: Engine, found: Mapping[str, bool]) -> dict[str, bool]:
    """What any rank found."""
    return dict(zip(FACTS, map(bool, engine.sum_over_ranks([float(found[fact]) for fact in FACTS])), strict=True))


def _cause(fact: str | None, plugins: RunPlugins, rate: float, of_loss: bool) -> Cause:
    loss, optimizer = plugins.loss, plugins.optimizer
    if fact == "weights":
        problem = f"{optimizer} wrote weights that are not finite in an earlier step, whose gradients were finite"
        fix = f"C{optimizer.another[1:]}" if rate <= PLAUSIBLE_RATE else f"Lower optimizer.lr, which is {rate:g}"
        return Cause(problem=problem, fix=fix, plugin=optimizer, rows=False)
    if fact == "reference":
        problem = "the reference model's figures of these rows are not finite"
        return Cause(problem=problem, fix="Look at the reference model and these rows")
    if fact == "inputs":
        problem = f"what the model computed for {loss} is not finite, though its weights are"
        return Cause(problem=problem, fix="Lower optimizer.lr or look at these rows")
    if fact in ("loss", "gradient"):
        what = "it" if fact == "loss" else "its gradient"
        problem = f"{loss} computed {what} from finite numbers"
        return Cause(problem=problem, fix=f"C{loss.another[1:]}", plugin=loss, rows=False)
    problem = f"{loss} and the gradient of what it is passed are finite; the model's backward pass is not"
    if of_loss:
        problem = f"it was computed by {loss}, and is finite when it is computed once more in evaluation mode"
    return Cause(problem=problem, fix="Lower optimizer.lr or look at these rows")
