"""Training state on disk without pickle: tensors in a safetensors file, everything else in a JSON file beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bumblecore_core.errors import PluginError, one

TENSOR, TUPLE, ITEMS, FLOAT = "$tensor", "$tuple", "$items", "$float"
MARKS = frozenset({TENSOR, TUPLE, ITEMS, FLOAT})


def write_state(directory: Path, name: str, tree: Any) -> None:
    """Writes `tree` as `name.json` and, where it holds tensors, `name.safetensors`.

    `tree`: dicts, lists, tuples, strings, numbers, booleans, None and dense tensors, nested; it is read back with
    equal types, float values and tensor dtypes. Raises `PluginError` BC055 for anything else, naming where it is.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = _pack(tree, name, tensors)
    (directory / f"{name}.json").write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if tensors:
        save_file(_unshared(tensors), directory / f"{name}.safetensors")


def read_state(directory: Path, name: str) -> Any:
    """What `write_state` wrote; its tensors are on the CPU and own their memory."""
    plain = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    file = directory / f"{name}.safetensors"
    tensors = load_file(file) if file.exists() else {}
    return _unpack(plain, tensors)


def unsavable(tree: Any) -> str | None:
    """What in `tree` `write_state` could not write, and where, such as `a Lock at .0.lock`; None where it could."""
    try:
        _pack(tree, "", {})
    except PluginError as error:
        return error.problems[0].problem.partition(" cannot be saved")[0]
    return None


def copied(tree: Any) -> Any:
    """`tree` with every tensor copied to CPU memory of its own; containers are new, other values are the same."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(copied, tree))
    return [copied(item) for item in tree] if isinstance(tree, list) else tree


def copied_once(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU; names that share a tensor (tied weights) share its copy."""
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], torch.Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in copies:
            copies[key] = copied(tensor)
        found[name] = copies[key]
    return found


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor) and _is_plain(value):
        name = str(len(tensors))
        tensors[name] = value.detach().resolve_conj().resolve_neg()
        return {TENSOR: name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {FLOAT: repr(float(value))}
    if isinstance(value, list):
        return [_pack(item, f"{path}.{at}", tensors) for at, item in enumerate(value)]
    if isinstance(value, tuple):
        return {TUPLE: [_pack(item, f"{path}.{at}", tensors) for at, item in enumerate(value)]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not MARKS & set(value):
            return {key: _pack(item, f"{path}.{key}", tensors) for key, item in value.items()}
        in_keys: dict[str, torch.Tensor] = {}
        pairs = [[_pack(key, path, in_keys), _pack(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        if in_keys:
            raise _unsavable("a Tensor as a key", path)
        return {ITEMS: pairs}
    raise _unsavable(f"a {type(value).__name__}", path)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether safetensors can hold it."""
    return tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype != torch.complex128


def _unsavable(what: str, path: str) -> Exception:
    problem = f"{what} at {path} cannot be saved: a checkpoint holds plain tensors, numbers and text alone"
    return one(PluginError, "BC055", problem, "Keep state of these types in state_dict()", field=path)


def _unpack(plain: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(plain, list):
        return [_unpack(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if TENSOR in plain:
        return tensors[plain[TENSOR]].clone()
    if TUPLE in plain:
        return tuple(_unpack(item, tensors) for item in plain[TUPLE])
    if ITEMS in plain:
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in plain[ITEMS]}
    if FLOAT in plain:
        return float(plain[FLOAT])
    return {key: _unpack(item, tensors) for key, item in plain.items()}


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors of which no two share memory, as safetensors wants them."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        shared = storage in seen
        found[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        seen.add(storage)
    return found
