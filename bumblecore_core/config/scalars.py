"""How unquoted YAML scalars are read: as in YAML 1.1, but `1e-5` is a number, and dates and `1:30` are text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import yaml

LARGEST_EXACT = 2**53  # floats hold every whole number up to here
LARGEST = 2**64  # no setting is larger; Python refuses to print integers of some thousand digits
TAG = "tag:yaml.org,2002:"
_TRUE = frozenset({"yes", "true", "on"})
_FALSE = frozenset({"no", "false", "off"})
_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o[0-7_]+|0[0-7_]+|0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|"
    r"\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, of which only the composer is used, with this module's rules for plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own class attribute


class PlainDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting the texts that `PlainLoader` would read as something else, such as `1e5`, and those
    that other readers would, such as `2024-01-02`."""


_BOOLEAN = re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)\Z")
for _kind in (PlainLoader, PlainDumper):
    _kind.add_implicit_resolver(TAG + "bool", _BOOLEAN, list("yYnNtTfFoO"))
    _kind.add_implicit_resolver(TAG + "int", _INTEGER, list("-+0123456789"))
    _kind.add_implicit_resolver(TAG + "float", _FLOAT, list("-+0123456789."))
    _kind.add_implicit_resolver(TAG + "merge", re.compile(r"<<\Z"), ["<"])
    _kind.add_implicit_resolver(TAG + "null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


def _integer(text: str) -> int:
    if not _INTEGER.match(text):
        raise ValueError(text)
    digits = text.replace("_", "").lstrip("+-")
    bases = {"0b": 2, "0x": 16, "0o": 8}
    base = bases.get(digits[:2], 8 if len(digits) > 1 and digits[0] == "0" else 10)
    number = int(digits[2:] if digits[:2] in bases else digits, base)
    if number > LARGEST:
        raise ValueError(text)
    return -number if text.startswith("-") else number


def _number(text: str) -> float | int:
    """A float; one written `1e4`, without a dot, is a whole number where it is exact, so that it also fits a count."""
    if _INTEGER.match(text):
        return float(_integer(text))
    if not _FLOAT.match(text):
        raise ValueError(text)
    if text.lower().endswith(("inf", "nan")):
        return math.inf
    number = float(text.replace("_", ""))
    whole = "." not in text and number.is_integer() and abs(number) <= LARGEST_EXACT
    return int(number) if whole else number


def _null(text: str) -> None:
    if text.lower() not in ("", "~", "null"):
        raise ValueError(text)


READERS: dict[str, Callable[[str], Any]] = {"bool": _boolean, "int": _integer, "float": _number, "null": _null}
