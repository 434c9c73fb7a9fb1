"""The weight files of a model directory, checked before a library loads them: all there, inside it, and whole."""

from __future__ import annotations

import json
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bumblecore_core.errors import BumbleError, ModelError, Problem, one
from bumblecore_core.toolkit.json_files import read_json_object

FIELD = "model.path"
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses longer ones
ZIP = b"PK\x03\x04"
_COPY = "Copy the model again; the file is not what was written"


def has_weights(directory: Path) -> bool:
    """Whether `from_pretrained` finds weights in a directory, in one file or in shards."""
    names = [name + end for name in (SAFETENSORS, PICKLED) for end in ("", ".index.json")]
    return any(os.path.isfile(directory / name) for name in names)


def weight_files(directory: Path) -> list[Path]:
    """The files that `from_pretrained` will read, all of them present. Raises `ModelError` BC029, or BC064 for an index
    that is damaged or names a file outside the directory."""
    for name in (SAFETENSORS, PICKLED):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            return _shards(index)
    fix = "Name a model that has its weights beside config.json"
    raise one(ModelError, "BC029", f"the directory has no {SAFETENSORS}", fix, place=str(directory), field=FIELD)


def check_weight_files(directory: Path) -> set[str]:
    """The floating dtypes of a directory's weights, as safetensors names them; `unknown` of pickled files.

    Raises `ModelError` as `weight_files` does, and BC064 for a damaged file or a pickled one that holds more than
    tensors.
    """
    found: set[str] = set()
    for file in weight_files(directory):
        if file.suffix == ".safetensors":
            found |= _dtypes(file)
        else:
            _check_pickled(file)
            found.add("unknown")
    return found


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored."""

    file: Path
    shape: tuple[int, ...]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor in a directory's safetensors files by name; nothing for pickled ones. Raises `ModelError` as
    `check_weight_files` does."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        if file.suffix == ".safetensors":
            _dtypes(file)
            header, _ = _header(file)
            shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
            found |= {name: StoredTensor(file, shape) for name, shape in shapes.items()}
    return found


def _shards(index: Path) -> list[Path]:
    weights = read_json_object(index, FIELD).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) and name for name in weights.values()):
        problem = "the index of the weight files is not readable"
        raise one(ModelError, "BC064", problem, _COPY, place=str(index), field=FIELD)
    names = sorted(set(weights.values()))
    # A link inside the directory may lead out of it: the hub's cache is made of such links, and files cannot make one.
    if outside := [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]:
        problem = f"the index names a weight file outside of its directory: {outside[0]!r}"
        raise one(
            ModelError, "BC064", problem, "Get the model from a source that you trust", place=str(index), field=FIELD
        )
    missing = [name for name in names if not os.path.isfile(index.parent / name)]  # unlike Path's, for any name
    if missing:
        raise ModelError(
            [
                Problem(
                    code="BC029",
                    problem=f"the weight file {name} is missing",
                    fix=f"Copy it again; {index.name} lists {len(names)} files",
                    place=str(index.parent / name),
                    field=FIELD,
                )
                for name in missing
            ]
        )
    return [index.parent / name for name in names]


def _dtypes(file: Path) -> set[str]:
    """The floating dtypes of a safetensors file, from its header; the header's offsets must end where the file does."""
    try:
        header, end = _header(file)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        whole = end + max((entry["data_offsets"][1] for entry in tensors), default=0) == file.stat().st_size
        dtypes = {entry["dtype"] for entry in tensors if entry["dtype"].startswith(("F", "BF"))}
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        problem = "the file is not a whole safetensors file"
        raise one(ModelError, "BC064", problem, _COPY, place=str(file), field=FIELD) from None
    if not whole:
        problem = "the file is shorter or longer than its header says"
        raise one(ModelError, "BC064", problem, _COPY, place=str(file), field=FIELD)
    return dtypes


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """(the JSON header, where the data starts): 8 bytes of length, the header, the data."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(LONGEST_HEADER, file.stat().st_size):
            raise ValueError("header longer than the file")
        header = json.loads(stream.read(length))
    return header, 8 + length


def _check_pickled(file: Path) -> None:
    """Reads the names and shapes of a pickled file, no weights. torch's own messages advise to load it with
    `weights_only=False`, which runs whatever code the file holds; so they are not repeated."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with file.open("rb") as opened:
                mapped = opened.read(len(ZIP)) == ZIP  # files of the form before that cannot be
            found = torch.load(file, map_location="meta", weights_only=True, mmap=mapped)
    except Exception:
        raise _not_weights(file) from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise _not_weights(file)


def _not_weights(file: Path) -> BumbleError:
    problem = "the file is damaged, or holds other Python objects than tensors, which are not loaded"
    fix = "Use a copy of the model with safetensors files"
    return one(ModelError, "BC064", problem, fix, place=str(file), field=FIELD)
