"""Choice of the attention implementation, and its registration with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bumblecore_core.errors import ConfigError, PluginError, did_you_mean, one
from bumblecore_core.records import AttentionRecord

if TYPE_CHECKING:
    import torch

PREFIX = "bumble_"


def select_attention(
    records: Sequence[AttentionRecord], name: str, *, device: torch.device, dtype: torch.dtype
) -> tuple[str, list[str]]:
    """(implementation name for transformers, lines for the summary) of the attention called `name`.

    `auto` takes the record of the highest priority that runs on `device` in `dtype`; the lines then say what was chosen
    and why each better one was not. An implementation with functions of its own is registered as `bumble_<name>`.
    Raises `PluginError` BC056 for an unknown name and `ConfigError` BC039 where nothing runs there.
    """
    lines: list[str] = []
    for record in _candidates(records, name):
        reason = record.unsupported(device=device, dtype=dtype)
        if reason is None:
            return _register(record), [record.name, *lines]
        lines.append(f"not {record.name}: {reason}")
    where = f"on {device.type} in {str(dtype).removeprefix('torch.')}"
    problem = f"attention {name} cannot run {where} ({'; '.join(lines) or 'no attention plugin is installed'})"
    raise one(
        ConfigError, "BC039", problem, "Set model.attention to auto, or change model.dtype", field="model.attention"
    )


def _candidates(records: Sequence[AttentionRecord], name: str) -> list[AttentionRecord]:
    if name == "auto":
        return sorted(records, key=lambda record: (-record.priority, record.name))
    named = [record for record in records if record.name == name]
    if not named:
        names = ["auto", *(record.name for record in records)]
        raise one(
            PluginError,
            "BC056",
            f"no attention plugin is called '{name}'",
            did_you_mean(name, names),
            field="model.attention",
        )
    return named


def _register(record: AttentionRecord) -> str:
    functions = record.load()
    if functions.forward is None:
        return record.name
    from transformers import AttentionInterface, AttentionMaskInterface

    name = PREFIX + record.name
    AttentionInterface.register(name, functions.forward)
    if functions.mask is not None:
        AttentionMaskInterface.register(name, functions.mask)
    return name
