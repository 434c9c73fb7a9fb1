"""A check of what `from_pretrained` did: are the model's weights those of its files?

Versions of transformers and safetensors have loaded some weights wrongly and said nothing (norm weights of files with
mixed dtypes stayed ones). So every tensor's name is looked up, and a few of its values are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import ModelError, one

if TYPE_CHECKING:
    import torch

SAMPLE = 8  # values from each of three places of a tensor
SHOWN = 5


def check_loaded_weights(model: Any, directory: Path, *, fresh: Sequence[str] = (), field: str = "model.path") -> None:
    """Compares the names and a sample of the values of `model`, just loaded from `directory`, with its safetensors
    files. Raises `ModelError` BC030 naming the weights that differ, and those that no file holds.

    `fresh`: weights that are random on purpose. A weight counts as loaded if any of its names does (tied weights).
    Weights that transformers converts (fused experts, quantized ones) are not compared, neither are pickled files.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        return
    from safetensors import safe_open

    own = {name: value for name, value in model.state_dict().items() if not value.is_meta}
    conversions = list(getattr(model, "_weight_conversions", None) or ())
    matching: set[int] = set()
    differing: dict[str, int] = {}
    converted = False
    for file in _safetensors_files(directory):
        with safe_open(file, framework="pt") as opened:
            for stored in opened.keys():  # noqa: SIM118
                name = _name_of(stored, model, own, conversions)
                converted = converted or name is None
                part = opened.get_slice(stored)
                if name is None or name not in own or tuple(part.get_shape()) != tuple(own[name].shape):
                    continue  # converted, or reported by transformers as unexpected or misshapen
                if _equal(part, own[name], padding=_padding_row(model, name, own[name])):
                    matching.add(own[name].data_ptr())
                else:
                    differing[name] = own[name].data_ptr()
    found = matching | set(differing.values())
    if not found:
        return
    wrong = [name for name, place in differing.items() if place not in matching]
    if wrong:
        raise _error(f"{_listed(wrong)} differ from the file after loading", directory, field)
    absent = [] if converted else _absent(model, found, fresh)
    if absent:
        raise _error(f"{_listed(absent)} were not loaded: no file holds them", directory, field)


def _safetensors_files(directory: Path) -> list[Path]:
    """Those that transformers reads; none where the weights are pickled or the index is damaged."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [directory / name for name in sorted(set(names))]


def _places(shape: Sequence[int]) -> list[tuple[slice, ...]]:
    """Slices at the start, in the middle and at the end; of a single number (no dimension) the number."""
    if not shape:
        return [()]
    widths = [1] * (len(shape) - 1) + [SAMPLE]
    places = []
    for share in (0.0, 0.5, 1.0):
        starts = [int(share * max(0, size - width)) for size, width in zip(shape, widths, strict=True)]
        places.append(tuple(slice(start, start + width) for start, width in zip(starts, widths, strict=True)))
    return places


def _equal(stored: Any, loaded: torch.Tensor, padding: int | None) -> bool:
    """Whether `loaded` has the values of the slice `stored`, rounded to its dtype. `padding`: a row that is not
    compared. A few numbers are read, not the file."""
    import torch

    places = [place for place in _places(loaded.shape) if padding is None or place[0].start != padding]
    if not places:
        return True
    values = torch.cat([stored[place].reshape(-1) for place in places]).to(loaded.dtype).double()
    own = torch.cat([loaded[place].reshape(-1) for place in places]).cpu().double()
    return bool(((values == own) | (values.isnan() & own.isnan())).all())


def _padding_row(model: Any, name: str, loaded: torch.Tensor) -> int | None:
    """The row of the padding token in an embedding: some models set it to zero after loading."""
    module = model.get_submodule(name.rpartition(".")[0])
    return getattr(module, "padding_idx", None) if loaded.dim() == 2 else None


def _name_of(stored: str, model: Any, own: dict[str, Any], conversions: Sequence[Any]) -> str | None:
    """The model's name of a stored tensor; None where transformers converts its values on the way, or where its rules
    for that are not the ones known here."""
    name = stored
    try:
        for conversion in sorted(conversions, key=lambda rule: hasattr(rule, "operations")):
            renamed, pattern = conversion.rename_source_key(name)
            if pattern is not None and hasattr(conversion, "operations"):
                return None
            name = renamed
    except Exception:  # another version's rules: nothing can be said about this tensor
        return None
    prefix = f"{model.base_model_prefix}."
    candidates = (name, name.removeprefix(prefix), prefix + name, stored)
    return next((candidate for candidate in candidates if candidate in own), name)


def _absent(model: Any, found: set[int], fresh: Sequence[str]) -> list[str]:
    """Parameters that no file holds under any of their names, apart from those that may be missing."""
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.data_ptr() not in found
        and parameter.numel()
        and name not in fresh
        and not any(pattern.search(name) for pattern in ignored)
    ]


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} weights ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"


def _error(problem: str, directory: Path, field: str) -> Exception:
    from importlib.metadata import version

    installed = " and ".join(f"{library} {version(library)}" for library in ("transformers", "safetensors"))
    fix = f"Update transformers and safetensors: {installed} do not load this model as it was saved"
    return one(ModelError, "BC030", problem, fix, place=str(directory), field=field)
