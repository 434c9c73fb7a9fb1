"""The weight files of a model directory, looked at before anything is loaded: are they all there and whole?"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import ModelError, Problem, one
from bumblecore_core.toolkit.adapters import adapter_chain

if TYPE_CHECKING:
    import torch

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
_COPY = "Copy the model again; the file is not what was written"


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype in which loading loses nothing: the files' own where they agree on bf16 or fp16, float32 otherwise.

    The engine makes float32 masters from what was loaded. Loading a float32 checkpoint in the compute dtype would round
    them; loading a bf16 one in float32 would only take twice the memory. The config's own `dtype` is a claim that files
    need not keep, so it is not asked. An adapter is folded into its base in float32, which rounds nothing away.

    Raises `ModelError`: BC029 for a missing file, BC064 for a torn or corrupt one.
    """
    import torch

    directory, adapters = adapter_chain(directory)
    if adapters:
        return torch.float32
    found: set[str] = set()
    for file in weight_files(directory):
        found |= _dtypes(file) if file.suffix == ".safetensors" else {"unknown"}
    return {frozenset({"BF16"}): torch.bfloat16, frozenset({"F16"}): torch.float16}.get(frozenset(found), torch.float32)


def weight_files(directory: Path) -> list[Path]:
    """The files that `from_pretrained` will read, all of them present."""
    for name in (SAFETENSORS, PICKLED):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            return _shards(index)
    fix = "Check model.path: a stage that starts from trained weights needs them beside config.json"
    raise one(ModelError, "BC029", f"the directory has no {SAFETENSORS}", fix, place=str(directory), field="model.path")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise one(
            ModelError, "BC064", "the index of the weight files is not readable", _COPY, place=str(index)
        ) from None
    missing = [name for name in names if not (index.parent / str(name)).is_file()]
    if missing:
        raise ModelError(
            [
                Problem(
                    code="BC029",
                    problem=f"the weight file {name} is missing",
                    fix=f"Copy it again; {index.name} lists {len(names)} files",
                    place=str(index.parent / str(name)),
                    field="model.path",
                )
                for name in missing
            ]
        )
    return [index.parent / str(name) for name in names]


def _dtypes(file: Path) -> set[str]:
    """The floating dtypes of a safetensors file, from its header; the header's offsets must end where the file does."""
    try:
        header, end = _header(file)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        whole = end + max((entry["data_offsets"][1] for entry in tensors), default=0) == file.stat().st_size
        dtypes = {entry["dtype"] for entry in tensors if entry["dtype"].startswith(("F", "BF"))}
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise one(ModelError, "BC064", "the file is not a whole safetensors file", _COPY, place=str(file)) from None
    if not whole:
        raise one(ModelError, "BC064", "the file is shorter or longer than its header says", _COPY, place=str(file))
    return dtypes


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """(the JSON header, where the data starts): 8 bytes of length, the header, the data."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > file.stat().st_size:
            raise ValueError("header longer than the file")
        header = json.loads(stream.read(length))
    return header, 8 + length
