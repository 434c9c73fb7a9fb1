"""Reads a config file and its overrides to raw data, with the origin of each key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bumblecore_core.config.keys import KeyPath
from bumblecore_core.config.overrides import COMMAND_LINE, apply
from bumblecore_core.config.shape import expand
from bumblecore_core.config.yaml import parse, read_text
from bumblecore_core.errors import ConfigError, one, printable

_KIND_NAMES = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """Raw data, not yet checked against the schema; short spellings are expanded (`adamw` is `{name: adamw}`).

    `origins`: `file:line`, or `--set`, of each key and list item that is written. `spelled`: unquoted values that YAML
    did not read as text, as they were written.
    """

    path: Path
    data: dict[str, Any]
    origins: dict[KeyPath, str]
    spelled: dict[KeyPath, str]

    def place(self, path: KeyPath) -> str:
        """The origin of the value at `path` or of the nearest thing around it that is written; at last, the file."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return printable(str(self.path))

    def overridden(self, path: KeyPath) -> bool:
        """Whether the value at `path` comes from the command line."""
        return self.origins.get(path) == COMMAND_LINE


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """The raw config of a YAML file, changed by `key=value` overrides.

    Raises `ConfigError`: BC061 (no such file), BC003 (not UTF-8), BC068 (not YAML), BC035 (duplicate keys), BC034 and
    BC038 (overrides that do not fit).
    """
    path = Path(path)
    source = printable(str(path))
    document = parse(read_text(path), place=lambda mark: f"{source}:{mark.line}")
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        problem = (
            f"expected a mapping of keys such as 'stage' and 'model', got {_KIND_NAMES.get(type(data), 'a value')}"
        )
        raise one(ConfigError, "BC038", problem, "Start from `bumble config init STAGE`", place=f"{source}:1")
    origins: dict[KeyPath, str] = {key: f"{source}:{mark.line}" for key, mark in document.marks.items()}
    spelled = dict(document.spelled)
    expand(data, spelled)  # for its second effect: the notes move along with what is expanded
    data = apply(expand(data, origins), overrides, origins=origins, spelled=spelled)
    return LoadedConfig(path=path, data=data, origins=origins, spelled=spelled)
