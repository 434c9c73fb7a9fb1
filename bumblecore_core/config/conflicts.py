"""Values of a config that exclude or need one another (BC039)."""

from __future__ import annotations

from typing import Any

from bumblecore_core.config.keys import KeyPath, dotted
from bumblecore_core.config.load import LoadedConfig
from bumblecore_core.config.shape import lookup
from bumblecore_core.errors import Problem

EXCLUSIVE: tuple[tuple[KeyPath, KeyPath], ...] = (
    (("train", "epochs"), ("train", "max_steps")),
    (("data", "eval_path"), ("data", "eval_split")),
)
_EVALUATION = "data.eval_path or data.eval_split"


def drop_beaten(loaded: LoadedConfig, data: dict[str, Any]) -> None:
    """Of two exclusive keys, one in the file and one on the command line, remove the file's from `data`.

    The command line beats the file: `--set train.max_steps=10` shortens a run whose file says `epochs`.
    """
    for pair in EXCLUSIVE:
        if any(lookup(data, path) is None for path in pair):
            continue
        from_file = [path for path in pair if not loaded.overridden(path)]
        if len(from_file) == 1:
            del lookup(data, from_file[0][:-1])[from_file[0][-1]]


def conflicts(loaded: LoadedConfig, data: dict[str, Any], *, stage: Any, loss: Any, scheduler: Any) -> list[Problem]:
    """The conflicts in `data`; `stage`, `loss` and `scheduler` are the chosen records, None where one is unknown."""
    found = []
    for first, second in EXCLUSIVE:
        if lookup(data, first) is not None and lookup(data, second) is not None:
            problem = f"conflicts with {dotted(first)}, set at {loaded.place(first)}"
            found.append(_conflict(loaded, second, problem, "Set only one of the two"))
    evaluates = any(lookup(data, path) is not None for path in EXCLUSIVE[1])
    eval_steps: KeyPath = ("train", "eval_steps")
    if lookup(data, eval_steps) is not None and not evaluates:
        problem = f"conflicts with {_EVALUATION}, neither of which is set: there is nothing to evaluate on"
        found.append(_conflict(loaded, eval_steps, problem, f"Set {_EVALUATION}, or remove train.eval_steps"))
    if scheduler is not None and scheduler.needs_metric and not evaluates:
        problem = (
            f"'{scheduler.name}' follows the evaluation loss, but neither {_EVALUATION.replace(' or ', ' nor ')} is set"
        )
        found.append(_conflict(loaded, ("scheduler",), problem, f"Set {_EVALUATION}, or choose another scheduler"))
    if stage is not None and loss is not None and stage.loss_kind != loss.loss_kind:
        at: KeyPath = ("loss",) if lookup(data, ("loss",)) is not None else ("stage",)
        problem = (
            f"the stage '{stage.name}' needs a {stage.loss_kind} loss, and '{loss.name}' is a {loss.loss_kind} loss"
        )
        fix = f"Remove loss to get the stage's own, '{stage.default_loss}', or choose a stage that takes it"
        found.append(_conflict(loaded, at, problem, fix))
    return found


def _conflict(loaded: LoadedConfig, path: KeyPath, problem: str, fix: str) -> Problem:
    return Problem(code="BC039", problem=problem, fix=fix, place=loaded.place(path), field=dotted(path))
