"""Independent random streams from one seed."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, stream: str, *parts: int) -> int:
    """A 63-bit seed for `stream` (`plan`, `init`, `dropout`, …), further split by `parts` such as epoch or rank.

    The first 8 bytes of SHA-256 over the printed values: the same on every machine, unrelated for neighbouring seeds.
    """
    text = ":".join([str(seed), stream, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
