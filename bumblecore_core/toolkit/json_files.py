"""The JSON files of a model directory, looked at before a library reads them and says less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bumblecore_core.errors import ModelError, one


def read_json_object(path: Path, field: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises `ModelError` BC064 with file and line where it holds none; `field`: the config
    key that led there."""
    fix = "Copy the file again; it is not what was written"
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of which a decoding error is one
        line = getattr(error, "lineno", None)
        problem = f"not valid JSON at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "not JSON"
        place = f"{path}:{line}" if line else str(path)
        raise one(ModelError, "BC064", problem, fix, place=place, field=field) from None
    except OSError as error:
        problem = f"the file cannot be read ({error.strerror})"
        raise one(ModelError, "BC061", problem, "Check its permissions", place=str(path), field=field) from None
    if not isinstance(value, dict):
        raise one(ModelError, "BC064", "the file holds no JSON object", fix, place=str(path), field=field)
    return value
