"""Which modules and parameters an adapter takes: checked before PEFT sees them, so that errors name what is wrong.

`linear_targets` is the one place that decides which layers `all-linear` means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bumblecore_core import BumbleError, ConfigError, ModelError, one
from bumblecore_core.toolkit.adapters import slow_pattern
from bumblecore_core.toolkit.limits import Exceeded, piece
from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_core.toolkit.vision_language import tower_pattern
from bumblecore_plugins.adapters import ALL_LINEAR, LoraOptions, changes_base
from bumblecore_plugins.adapters.layers import is_adaptable, linear_targets, reads_weight, short_name, text_modules
from bumblecore_plugins.adapters.parameters import (
    find_parameters,
    fused_experts,
    renamed_by_peft,
    renames_patterns,
    suffixes,
)

TARGETS, SAVED = "adapter.target_modules", "adapter.modules_to_save"
SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What an adapter takes, as PEFT's config names it."""

    modules: Sequence[str] | str
    """For `target_modules`: names or endings of names, or a regular expression for whole names."""

    parameters: Sequence[str]
    """For `target_parameters`: names or endings of names."""

    left_out: Mapping[str, int]
    """With `all-linear`: number of values by the short name of each matrix that the adapter does not reach."""

    warnings: Sequence[str]


def resolve_targets(model: Any, options: LoraOptions) -> Targets:
    """The targets that `options` mean in `model`, with warnings (BC032) for names that match nothing.

    Raises `ModelError` BC031, with the names that there are, where nothing matches or a module of a kind that LoRA
    cannot adapt does, BC092 for a regular expression that takes too long, `ConfigError` BC039 for tied weights, and
    BC103 for layers on which LoRA would have no effect or that PEFT cannot address with these options.
    """
    found, unmatched = _modules(model, options.target_modules)
    if changes_base(options.init):
        found = _decomposable(found, options)
    parameters, missing = find_parameters(model, options.target_parameters, found)
    modules = _spelled(model, options.target_modules, found)
    if renamed := renamed_by_peft(model, found):
        modules = [name for name in found if name not in renamed]
        if _allow_parameters(options):
            parameters = [*parameters, *suffixes(model, [f"{name}.weight" for name in renamed])]
        elif options.target_modules == ALL_LINEAR:
            found = {name: module for name, module in found.items() if name not in renamed}
        else:
            problem = f"PEFT takes {_quoted(renamed[:1])} for an expert, and adapts it only as a parameter"
            fix = "Set dropout to 0, use_dora to false and init to default, or name other modules"
            raise one(ConfigError, "BC103", problem, fix, field=TARGETS)
    return Targets(
        modules=modules,
        parameters=parameters,
        left_out=_left_out(model, found, parameters) if options.target_modules == ALL_LINEAR else {},
        warnings=[*unmatched, *missing],
    )


def check_rank(model: Any, rank: int) -> None:
    """Raises `ConfigError` BC039 for a rank above every dimension of the model's weights: PEFT would ask for memory
    without a limit, and such an update has no rank that a smaller one has not."""
    largest = max(max(whole_shape(parameter), default=0) for parameter in model.parameters())
    if rank > largest:
        problem = f"the rank {rank} is larger than every dimension of the model's weights ({largest})"
        raise one(ConfigError, "BC039", problem, "Choose a small one, such as 8", field="adapter.rank")


def saved_modules(model: Any, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(whole names of the modules to train in full, warnings BC032). Raises as `resolve_targets` does."""
    found, unmatched = _by_name(model, names)
    if names and not found:
        fix = f"There are, among others: {', '.join(_leaves(model))}"
        raise one(ModelError, "BC031", f"no module is called {_quoted(names)}", fix, field=SAVED)
    _refuse_tied(model, found, SAVED)
    return list(found), [f"BC032 {SAVED}: no module is called {_quoted(unmatched)}"] if unmatched else []


def _modules(model: Any, targets: Sequence[str] | str) -> tuple[dict[str, torch.nn.Module], list[str]]:
    """(modules by name, warnings)."""
    if targets == ALL_LINEAR:
        return linear_targets(model), []
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
        if targets and not found:
            raise one(ModelError, "BC031", f"no module is called {_quoted(targets)}", _there_are(model), field=TARGETS)
    odd = [name for name, module in found.items() if not is_adaptable(module)]
    if odd:
        kind = type(found[odd[0]]).__name__
        problem = f"{odd[0]} is a {kind}, which is not a linear layer or an embedding"
        raise one(ModelError, "BC031", problem, _there_are(model), field=TARGETS)
    without_effect = [name for name in found if reads_weight(model, name)]
    if without_effect:
        problem = f"the model reads the weight of {without_effect[0]} itself, so that LoRA on it has no effect"
        raise one(ConfigError, "BC103", problem, "Leave it out", field=TARGETS)
    _refuse_tied(model, found, TARGETS)
    return found, [f"BC032 {TARGETS}: no module is called {_quoted(unmatched)}; {_there_are(model)}"] * bool(unmatched)


def _decomposable(found: Mapping[str, torch.nn.Module], options: LoraOptions) -> dict[str, torch.nn.Module]:
    """The modules that have a decomposition of the rank. Raises `ConfigError` BC039 for others that are named."""
    large = {}
    for name, module in found.items():
        smallest = min(whole_shape(module.weight))  # type: ignore[arg-type]
        if smallest >= options.rank:
            large[name] = module
        elif options.target_modules != ALL_LINEAR:
            problem = f"conflict: init {options.init} of rank {options.rank}, and {name} has a dimension of {smallest}"
            raise one(ConfigError, "BC039", problem, "Leave it out, or lower the rank", field=TARGETS)
    return large


def _spelled(model: Any, targets: Sequence[str] | str, found: Mapping[str, torch.nn.Module]) -> Sequence[str] | str:
    """What PEFT is given for the modules `found`: as it was written where PEFT understands the same by that."""
    if isinstance(targets, str):
        return list(found) if targets == ALL_LINEAR or renames_patterns(model) else targets
    return [target for target in targets if any(name == target or name.endswith(f".{target}") for name in found)]


def _allow_parameters(options: LoraOptions) -> bool:
    """Whether PEFT adapts parameters with these options."""
    return not (options.dropout or options.use_dora or changes_base(options.init))


def _left_out(model: Any, found: Mapping[str, torch.nn.Module], parameters: Sequence[str]) -> dict[str, int]:
    """Values by short name of the matrices that are neither adapted nor an embedding or the output head."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    sizes: dict[str, int] = {}
    for name, module in text_modules(model).items():
        if name in found or module in ends or isinstance(module, torch.nn.Embedding):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            whole = f"{name}.{own}" if name else own
            shape = whole_shape(parameter)
            if len(shape) > 1 and not any(whole == taken or whole.endswith(f".{taken}") for taken in parameters):
                sizes[short_name(whole)] = sizes.get(short_name(whole), 0) + shape.numel()
    return sizes


def _by_name(model: Any, names: Sequence[str]) -> tuple[dict[str, torch.nn.Module], list[str]]:
    """The modules that a list means, and the names that mean none."""
    found = _matching(model, lambda own: any(own == name or own.endswith(f".{name}") for name in names))
    return found, [name for name in names if not any(own == name or own.endswith(f".{name}") for own in found)]


def _matching(model: Any, wanted: Callable[[str], bool]) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in text_modules(model).items() if name and wanted(name)}


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
        for name, module in text_modules(model).items()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    experts = "; the experts are parameters: adapter.target_parameters takes them" if fused_experts(model) else ""
    where = "here" if tower_pattern(model) is None else "outside of the towers, which stay frozen,"
    return f"Linear layers {where} are called {', '.join(sorted(linear)[:SHOWN])}{experts}"


def _leaves(model: Any) -> list[str]:
    own = {
        name.rsplit(".", 1)[-1] for name, module in text_modules(model).items() if name and not any(module.children())
    }
    return sorted(name for name in own if not name.isdigit())[:SHOWN]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
