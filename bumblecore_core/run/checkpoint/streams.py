"""The random streams of a process: begun from the run's seed, taken, and put back bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from bumblecore_core.toolkit.seeds import derive_seed


def seed_streams(seed: int, rank: int, first_step: int = 0) -> None:
    """Begins the streams that dropout and plugins draw from: others for each rank, and for each step that a run goes on
    from with another number of ranks."""
    torch.manual_seed(derive_seed(seed, "dropout", rank, first_step))
    np.random.seed(derive_seed(seed, "numpy", rank, first_step) % 2**32)
    random.seed(derive_seed(seed, "python", rank, first_step))


def take_streams(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators (the CPU's, and the device's where it is a GPU), of NumPy's global one and of
    Python's `random`, as a tree that `write_state` takes."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert not isinstance(keys, str)  # NumPy types the states of both its interfaces as one
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def put_streams(states: dict[str, Any], device: torch.device) -> None:
    """Puts back what `take_streams` took. A GPU's stream is left as it is where none was taken."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(states["python"])
