"""Which modules an adapter takes: checked before PEFT sees them, so that what does not match is said by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bumblecore_core import BumbleError, ConfigError, ModelError, one
from bumblecore_core.toolkit.adapters import slow_pattern
from bumblecore_core.toolkit.limits import Exceeded, piece
from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_plugins.adapters import ALL_LINEAR

TARGETS, SAVED = "adapter.target_modules", "adapter.modules_to_save"
SHOWN = 12


def check_targets(model: Any, targets: Sequence[str] | str) -> list[str]:
    """Warnings (BC032) for names of a list that match nothing.

    Raises `ModelError` BC031, with the names that there are, where nothing matches or a module of a kind that LoRA
    cannot adapt does, BC092 for a regular expression that takes too long, and `ConfigError` BC039 for tied weights.
    """
    if targets == ALL_LINEAR:
        return []
    if isinstance(targets, str):
        pattern = re.compile(targets)
        try:
            with piece():
                found = _matching(model, lambda name: pattern.fullmatch(name) is not None)
        except Exceeded as error:
            raise slow_pattern(error, field=TARGETS) from None
        if not found:
            hint = f"Write [{targets}] for the modules of that name" if targets.isidentifier() else _there_are(model)
            raise one(ModelError, "BC031", f"no module's name matches {targets!r} as a whole", hint, field=TARGETS)
        unmatched: list[str] = []
    else:
        found, unmatched = _by_name(model, targets)
        if not found:
            raise one(ModelError, "BC031", f"no module is called {_quoted(targets)}", _there_are(model), field=TARGETS)
    odd = [name for name, module in found.items() if not _is_adaptable(module)]
    if odd:
        kind = type(found[odd[0]]).__name__
        problem = f"{odd[0]} is a {kind}, which is not a linear layer or an embedding"
        raise one(ModelError, "BC031", problem, _there_are(model), field=TARGETS)
    _refuse_tied(model, found, TARGETS)
    return [f"BC032 {TARGETS}: no module is called {_quoted(unmatched)}; {_there_are(model)}"] if unmatched else []


def check_rank(model: Any, rank: int) -> None:
    """Raises `ConfigError` BC039 for a rank above every dimension of the model's weights: PEFT would ask for memory
    without a limit, and such an update has no rank that a smaller one has not."""
    largest = max(max(whole_shape(parameter), default=0) for parameter in model.parameters())
    if rank > largest:
        problem = f"the rank {rank} is larger than every dimension of the model's weights ({largest})"
        raise one(ConfigError, "BC039", problem, "Choose a small one, such as 8", field="adapter.rank")


def saved_modules(model: Any, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(whole names of the modules to train in full, warnings BC032). Raises as `check_targets` does."""
    found, unmatched = _by_name(model, names)
    if names and not found:
        fix = f"There are, among others: {', '.join(_leaves(model))}"
        raise one(ModelError, "BC031", f"no module is called {_quoted(names)}", fix, field=SAVED)
    _refuse_tied(model, found, SAVED)
    return list(found), [f"BC032 {SAVED}: no module is called {_quoted(unmatched)}"] if unmatched else []


def _by_name(model: Any, names: Sequence[str]) -> tuple[dict[str, torch.nn.Module], list[str]]:
    """The modules that a list means, and the names that mean none."""
    found = _matching(model, lambda own: any(own == name or own.endswith(f".{name}") for name in names))
    return found, [name for name in names if not any(own == name or own.endswith(f".{name}") for own in found)]


def _matching(model: Any, wanted: Callable[[str], bool]) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if name and wanted(name)}


def _is_adaptable(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | torch.nn.Embedding | Conv1D | torch.nn.Conv1d | torch.nn.Conv2d)


def _refuse_tied(model: Any, found: dict[str, torch.nn.Module], field: str) -> None:
    """Tied embeddings are one matrix with two readers. Adapting one reader unties them, and neither a merged model nor
    a base policy would then be what its config.json says."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None or head.weight is not embedding.weight:
        return
    tied = [name for name, module in found.items() if module in (embedding, head)]
    if tied:
        raise _tied(tied, field)


def _tied(names: Sequence[str], field: str) -> BumbleError:
    problem = f"{_quoted(names)} shares its weight with the other end of the model (tie_word_embeddings)"
    fix = "Leave it out, or untie the model first: save it with tie_word_embeddings false and a weight for each"
    return one(ConfigError, "BC039", problem, fix, field=field)


def _there_are(model: Any) -> str:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]: None
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    return f"Linear layers here are called {', '.join(sorted(linear)[:SHOWN])}"


def _leaves(model: Any) -> list[str]:
    own = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if name and not any(module.children())}
    return sorted(name for name in own if not name.isdigit())[:SHOWN]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
