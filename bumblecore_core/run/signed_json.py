"""JSON documents that hold the SHA-256 of their own other fields, so that any changed byte is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SIGNATURE = "sha256"


def sign(plain: Mapping[str, Any]) -> bytes:
    """The document of `plain`'s fields and their hash. Equal fields give equal bytes."""
    body = json.dumps(plain, sort_keys=True)
    signed = {**plain, SIGNATURE: hashlib.sha256(body.encode()).hexdigest()}
    return (json.dumps(signed, indent=1, sort_keys=True) + "\n").encode()


def read_signed(written: bytes) -> dict[str, Any]:
    """The fields that `sign` wrote. Raises `ValueError` where these are not exactly the bytes that it writes."""
    try:
        plain: dict[str, Any] = json.loads(written)
        del plain[SIGNATURE]
        intact = written == sign(plain)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # of which a decoding error is one
        raise ValueError("not a signed document") from error
    if not intact:
        raise ValueError("the bytes are not those that were written")
    return plain
