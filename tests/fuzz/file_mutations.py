"""Seeded damage to files: bytes for any file, values for JSON, the header for safetensors."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]
Place = tuple[str | int, ...]

DEEP = 100_000
SCALARS: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        7,
        2**31,
        2**63,
        -(2**63),
        10**9,
        10**18,
        10**40,
        0.5,
        -0.5,
        1e-320,
        1e308,
        -1e308,
    ),
    *(
        float("nan"),
        float("inf"),
        "",
        "a",
        "(",
        "auto",
        "1",
        "\ud800",
        "\x00",
        "\x1b[2J",
        "..",
        "/etc/passwd",
        "x" * 5000,
    ),
    *("float32", "{{ 1/0 }}", "{% for a in range(9**9) %}{% endfor %}", "中" * 20),
)
CONTAINERS: tuple[Any, ...] = ([], {}, [[]], [None], [0], ["a"], [{}], {"a": 1}, {"": None}, [0] * 10_000, {"type": 3})


def flip(data: bytes, dice: random.Random) -> bytes:
    """One to eight bytes with other values."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        if changed:
            changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def truncate(data: bytes, dice: random.Random) -> bytes:
    """The beginning."""
    return data[: dice.randrange(len(data) + 1)]


def splice(data: bytes, dice: random.Random) -> bytes:
    """A piece taken out, or put in a second time, or zeros in its place."""
    start, end = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    piece = dice.choice([b"", data[start:end] * 2, bytes(end - start)])
    return data[:start] + piece + data[end:]


def replace_value(data: bytes, dice: random.Random) -> bytes:
    """A JSON document with one or two values of another type or size, a key taken out, or an unknown one put in."""
    value = json.loads(data)
    for _ in range(dice.choice([1, 1, 1, 2])):
        _change(value, dice)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def nest(data: bytes, dice: random.Random) -> bytes:
    """A JSON document with a value that is nested deeper than any parser's stack."""
    value = json.loads(data)
    places = list(_places(value))
    mark = "a mark that stands for the nested value"
    if places:
        _put(value, dice.choice(places), mark)
    deep = dice.choice([b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP, b"[" * DEEP])
    return json.dumps(value).encode().replace(json.dumps(mark).encode(), deep)


def whole_value(data: bytes, dice: random.Random) -> bytes:
    """A JSON document that is something else altogether."""
    return json.dumps(dice.choice(SCALARS + CONTAINERS)).encode("utf-8", "surrogatepass")


def change_header(data: bytes, dice: random.Random) -> bytes:
    """A safetensors file with another header in front of its data, or with a length that is not the header's."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = dice.random()
    if kind < 0.15:
        claimed = dice.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])
        return struct.pack("<Q", claimed) + header + rest
    change = nest if kind < 0.2 else flip if kind < 0.4 else replace_value
    header = change(header, dice)
    return struct.pack("<Q", len(header)) + header + rest


ANY: tuple[Mutation, ...] = (flip, truncate, splice)
JSON: tuple[Mutation, ...] = (*ANY, *(replace_value,) * 9, nest, whole_value)
SAFETENSORS: tuple[Mutation, ...] = (*ANY, *(change_header,) * 6)


def _change(value: Any, dice: random.Random) -> None:
    places = list(_places(value))
    if not places:
        return
    place = dice.choice(places)
    kind = dice.random()
    if kind < 0.12:
        _take_out(value, place)
    elif kind < 0.2:
        inner = _at(value, place[:-1])
        if isinstance(inner, dict):
            inner[dice.choice(["unknown", "", "\x1b[2J", "__class__", "self", "name"])] = dice.choice(SCALARS)
    else:
        _put(value, place, json.loads(json.dumps(dice.choice(SCALARS + CONTAINERS))))


def _places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Where the values of a document are; of a long list or mapping only a few."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    for key, inner in pairs if len(pairs) < 60 else pairs[:3] + pairs[-3:]:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _at(value: Any, path: Place) -> Any:
    for key in path:
        value = value[key]
    return value


def _put(value: Any, path: Place, new: Any) -> None:
    _at(value, path[:-1])[path[-1]] = new


def _take_out(value: Any, path: Place) -> None:
    del _at(value, path[:-1])[path[-1]]
