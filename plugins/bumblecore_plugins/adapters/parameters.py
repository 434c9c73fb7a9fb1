"""Parameters that an adapter takes (PEFT's `target_parameters`): fused experts, and layers that PEFT would rename."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from bumblecore_core import ConfigError, ModelError, one
from bumblecore_core.toolkit.adapter_tensors import quietly
from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_core.toolkit.vision_language import tower_parameters
from bumblecore_plugins.adapters import ALL_EXPERTS
from bumblecore_plugins.adapters.layers import short_name, text_modules

FIELD = "adapter.target_parameters"
SHOWN = 12


def fused_experts(model: Any) -> list[str]:
    """Names of the parameters that hold one matrix for each expert: (experts, ·, ·) in a module of experts."""
    return [
        f"{name}.{own}"
        for name, module in text_modules(model).items()
        if "expert" in f"{name} {type(module).__name__}".lower()
        for own, parameter in module.named_parameters(recurse=False)
        if len(whole_shape(parameter)) == 3
    ]


def find_parameters(
    model: Any, targets: Sequence[str] | str | None, modules: Mapping[str, torch.nn.Module]
) -> tuple[list[str], list[str]]:
    """(names or endings of names for PEFT's `target_parameters`, warnings BC032). `modules`: adapted by name already.

    Raises `ModelError` BC031 where nothing matches or a parameter has no two or three dimensions, and `ConfigError`
    BC039 for a parameter of an adapted module.
    """
    if targets is None:
        return [], []
    experts = fused_experts(model)
    if targets == ALL_EXPERTS:
        if not experts:
            fix = "Set it to null: every expert is a module, or there are none"
            raise one(ModelError, "BC031", "no parameter holds fused experts", fix, field=FIELD)
        return suffixes(model, experts), []
    towers = tower_parameters(model)
    names = {name: parameter for name, parameter in model.named_parameters() if name not in towers}
    found = {name for name in names if any(_ends(name, target) for target in targets)}
    unmatched = [target for target in targets if not any(_ends(name, target) for name in found)]
    if not found:
        shown = experts or [name for name, parameter in names.items() if len(whole_shape(parameter)) > 1]
        there_are = ", ".join(dict.fromkeys(map(short_name, shown)))
        problem = f"no parameter is called {', '.join(map(repr, targets))}"
        raise one(ModelError, "BC031", problem, f"There are, among others: {there_are}", field=FIELD)
    if odd := [name for name in sorted(found) if len(whole_shape(names[name])) not in (2, 3)]:
        problem = f"{odd[0]} has {len(whole_shape(names[odd[0]]))} dimensions, and LoRA is for two or three"
        raise one(ModelError, "BC031", problem, "Leave it out", field=FIELD)
    if twice := [name for name in sorted(found) if name.rpartition(".")[0] in modules]:
        problem = f"conflict: {twice[0]} belongs to a module that target_modules names"
        raise one(ConfigError, "BC039", problem, "Leave it out of one of them", field=FIELD)
    used = sorted(found) if towers else [target for target in targets if target not in unmatched]
    return used, [f"BC032 {FIELD}: no parameter is called {', '.join(map(repr, unmatched))}"] * bool(unmatched)


def renamed_by_peft(model: Any, names: Iterable[str]) -> list[str]:
    """Modules that PEFT would take for something else: it reads names such as gate_proj as those of experts, as they
    were modules in older versions of transformers, also where a shared expert or a dense layer has them."""
    names = list(names)
    renamed = {
        leaf for leaf in {name.rpartition(".")[2] for name in names} if leaf not in _as_peft_reads(model, [leaf])
    }
    return [name for name in names if name.rpartition(".")[2] in renamed]


def renames_patterns(model: Any) -> bool:
    """Whether PEFT reads a regular expression for this model's modules as a list of names that may mean experts."""
    return not isinstance(_as_peft_reads(model, ".*"), str)


def _as_peft_reads(model: Any, targets: list[str] | str) -> set[str] | str:
    """`target_modules` as PEFT rewrites them for models whose experts once were modules."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=targets)
    try:
        with quietly():
            convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one part of a pair that is fused
        return set()
    found: set[str] | str = config.target_modules or set()
    return found


def suffixes(model: Any, wanted: Sequence[str]) -> list[str]:
    """The shortest list of endings that match the parameters `wanted` and no other."""
    names, asked = [name for name, _ in model.named_parameters()], set(wanted)
    found: dict[str, None] = {}
    for name in wanted:
        short = short_name(name)
        exact = all(other in asked for other in names if _ends(other, short))
        found[short if exact else name] = None
    return sorted(found)


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
