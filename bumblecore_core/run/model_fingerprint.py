"""Fingerprints of model directories: which weights, however named the directory is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bumblecore_core.errors import BumbleError, ModelError, one
from bumblecore_core.run.hashing import file_hash, remembered_hashes
from bumblecore_core.toolkit.adapter_tensors import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_KEY
from bumblecore_core.toolkit.adapters import adapter_chain
from bumblecore_core.toolkit.tokenizers import resolve_model_dir
from bumblecore_core.toolkit.weight_files import weight_files


def weights_fingerprint(directory: Path, cache_dir: Path) -> str:
    """SHA-256 over the names and all bytes of the weight files that loading `directory` reads. Of an adapter's
    directory: of its base, of the adapter, and of its `adapter_config.json` apart from where the base is.

    Files are hashed in parallel threads, and their hashes remembered in `cache_dir` while they stay the same. Raises
    `ModelError` BC029 for a missing file, BC061 for an unreadable one, BC064.
    """
    base, adapters = adapter_chain(directory)
    files = [*weight_files(base), *(adapter / ADAPTER_WEIGHTS for adapter in adapters)]
    digest = hashlib.sha256()
    try:
        for file, content in zip(files, remembered_hashes(files, cache_dir), strict=True):
            digest.update(f"{file.name}\0{content}\0".encode())
        for adapter in adapters:
            config = json.loads((adapter / ADAPTER_CONFIG).read_bytes())
            kept = {key: value for key, value in config.items() if key != BASE_KEY}
            digest.update(json.dumps(kept, sort_keys=True).encode())
    except FileNotFoundError as error:
        problem, fix = "the weight file is missing", "Copy the model again"
        raise one(ModelError, "BC029", problem, fix, place=str(error.filename)) from error
    except OSError as error:
        problem = f"the weight file cannot be read: {error.strerror}"
        raise one(ModelError, "BC061", problem, "Check its permissions and the disk", place=str(directory)) from error
    return digest.hexdigest()


def code_and_config(directory: Path, *, trust_remote_code: bool) -> dict[str, str]:
    """SHA-256 of the `config.json` that `directory` is loaded with and, where it is run, of its own Python code."""
    base, _ = adapter_chain(directory)
    names = ["config.json", *(sorted(file.name for file in base.glob("*.py")) if trust_remote_code else [])]
    return {name: file_hash(base / name) for name in names if (base / name).is_file()}


def named_weights(options: Mapping[str, Any], cache_dir: Path) -> dict[str, str]:
    """Fingerprints of the model or adapter directories that a plugin's options name, by option."""
    found = {}
    for name, value in options.items():
        if isinstance(value, str) and os.path.isdir(os.path.expanduser(value)):
            try:
                found[name] = weights_fingerprint(resolve_model_dir(value), cache_dir)
            except BumbleError:
                continue  # no weights in there; whether there should be is the plugin's to say
    return found
