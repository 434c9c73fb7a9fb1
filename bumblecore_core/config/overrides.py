"""`--set a.b.c=value`: the one way in which a command line changes a config.

Command line beats file beats default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bumblecore_core.config.keys import KeyPath, dotted, shown
from bumblecore_core.config.shape import default_loggers, expand, lookup
from bumblecore_core.config.yaml import DEEPEST, parse
from bumblecore_core.errors import ConfigError, Problem, one

COMMAND_LINE = "--set"


def apply(
    data: dict[str, Any], overrides: Sequence[str], *, origins: dict[KeyPath, str], spelled: dict[KeyPath, str]
) -> dict[str, Any]:
    """`data` (in expanded form) with each `key=value` of `overrides` written into it, in order, again in expanded form.

    The value is read as YAML. A number in the key is an index of a list; one past its end appends. `data`, `origins`
    and `spelled` are changed in place. Raises `ConfigError` BC034, BC038 or BC068 for all overrides that are wrong.
    """
    problems: list[Problem] = []
    for override in overrides:
        try:
            key, text = _split(override)
            document = parse(text, place=lambda mark: COMMAND_LINE)
            _write(data, key, document.data, origins, spelled)
            origins.update({(*key, *below): COMMAND_LINE for below in document.marks})
            spelled.update({(*key, *below): written for below, written in document.spelled.items()})
            data = expand(data, origins)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return data


def _split(override: str) -> tuple[tuple[str, ...], str]:
    key, equals, text = override.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts) or len(parts) > DEEPEST:
        problem = f"expected key=value, got {shown(override)!r}"
        fix = f"Write it as {COMMAND_LINE} train.epochs=3"
        raise one(ConfigError, "BC038", problem, fix, place=COMMAND_LINE)
    return parts, text


def _write(
    data: dict[str, Any], key: tuple[str, ...], value: Any, origins: dict[KeyPath, str], spelled: dict[KeyPath, str]
) -> None:
    """Set the value at `key`, making the sections on the way, and forget what was noted for what it replaces."""
    at: Any = data
    path: KeyPath = ()
    for position, part in enumerate(key):
        where = _index(at, part, path) if isinstance(at, list) else part
        path = (*path, where)
        if position == len(key) - 1:
            _forget(path, origins)
            _forget(path, spelled)
            origins[path] = COMMAND_LINE
            _put(at, where, value)
            return
        inside = lookup(at, (where,))
        if inside is None:
            inside = default_loggers() if path == ("loggers",) else {}
            origins[path] = COMMAND_LINE
            _put(at, where, inside)
        if not isinstance(inside, dict | list):
            problem = f"{dotted(path)} is a single value, not a section"
            fix = f"Write {COMMAND_LINE} {dotted(path)}=…"
            raise one(ConfigError, "BC034", problem, fix, place=COMMAND_LINE, field=dotted(key))
        at = inside


def _index(items: list[Any], part: str, path: KeyPath) -> int:
    # str.isdigit alone also takes digits such as '²', which int() refuses
    if part.isascii() and part.isdigit() and len(part) <= 6 and int(part) <= len(items):
        return int(part)
    problem = f"'{shown(part)}' is no index of the list {dotted(path)}, which has {len(items)} items"
    fix = f"Use an index from 0 to {len(items)} (the last one appends)"
    raise one(ConfigError, "BC034", problem, fix, place=COMMAND_LINE, field=dotted((*path, part)))


def _put(at: Any, where: str | int, value: Any) -> None:
    if isinstance(at, list) and where == len(at):
        at.append(value)
    else:
        at[where] = value


def _forget(path: KeyPath, notes: dict[KeyPath, str]) -> None:
    for below in [noted for noted in notes if noted[: len(path)] == path]:
        del notes[below]
