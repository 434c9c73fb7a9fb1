"""Where a reference model's figures are kept between runs: files that are checked before they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from bumblecore_core.protocols import Engine
from bumblecore_core.run.assemble import Prepared
from bumblecore_core.run.data.fingerprint import code_fingerprint, installed_version
from bumblecore_core.run.files import disk_errors

SUFFIX = ".logprobs"
LIBRARIES = ("bumblecore", "torch", "transformers", "peft")
HASH_BYTES = hashlib.sha256().digest_size


class DamagedFigures(Exception):
    """A file of the cache is not what was written."""


def circumstances(prepared: Prepared, engine: Engine) -> dict[str, Any]:
    """What a row's figures depend on besides the model and the data, down to the last bit: the code, the device, and
    the rows with which it shares a forward pass. What a run logs and saves plays no part."""
    stage = prepared.resolved.stage
    plans = [plan for plan in (prepared.plan, prepared.eval_plan) if plan is not None]
    return {
        "stage": [stage.name, stage.options.model_dump(mode="json"), code_fingerprint([stage.record.build])],
        "engine": [prepared.resolved.engine.name, engine.device.type, str(engine.dtype)],
        "rows": [
            [asdict(plan.options), plan.total_steps, plan.weights, hashlib.sha256(plan.rows.tobytes()).hexdigest()]
            for plan in plans
        ],
        "libraries": {name: installed_version(name) for name in LIBRARIES},
    }


def key_of(parts: Any) -> str:
    """A name for the file of figures that depend on `parts`, which is plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def write_figures(path: Path, values: dict[str, np.ndarray]) -> None:
    """Keeps (rows,) arrays by name. Raises `RunError` BC045 or BC042 where the cache cannot be written."""
    data = save(values)
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing")  # another run may keep the same figures now
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(hashlib.sha256(data).digest() + data)
            beside.replace(path)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def read_figures(path: Path, names: Sequence[str], rows: int) -> dict[str, np.ndarray] | None:
    """What was kept, where it is these `names` of `rows` rows; None where nothing was kept. Raises `DamagedFigures`:
    the bytes are compared with their hash before anything interprets them."""
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFigures from error
    check, data = written[:HASH_BYTES], written[HASH_BYTES:]
    if hashlib.sha256(data).digest() != check:
        raise DamagedFigures
    values = load(data)
    whole = set(values) == set(names) and all(column.shape == (rows,) for column in values.values())
    return values if whole else None
