"""Every key of a config, taken from the JSON Schema with the options of each built-in plugin, and odd values for it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bumblecore_core.config.json_schema import config_schema
from bumblecore_core.registry import PluginSwitches, load_registry
from workbench import sentence, workbench

SWITCHES = PluginSwitches(builtins_only=True)
REGISTRY = load_registry(SWITCHES)
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Key:
    """Where a value goes. `chosen`: the plugins that must be chosen for it, each with its place."""

    path: Path_
    chosen: tuple[tuple[Path_, str], ...] = ()
    types: frozenset[str] = frozenset()

    def __str__(self) -> str:
        names = "".join(f" of {name}" for _, name in self.chosen)
        return ".".join(map(str, self.path)) + names


def keys() -> list[Key]:
    """All keys that the schema knows, with the JSON types that it gives them."""
    schema = config_schema(REGISTRY)
    found: dict[tuple[Any, ...], Key] = {}
    for key in _keys(schema, schema, Key(())):
        before = found.get((key.path, key.chosen), key)
        found[key.path, key.chosen] = replace(key, types=key.types | before.types)
    return list(found.values())


def _keys(schema: dict[str, Any], node: dict[str, Any], at: Key) -> Iterator[Key]:
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for branch in node.get("anyOf", ()):
        yield from _keys(schema, branch, at)
    if "items" in node:
        yield from _keys(schema, node["items"], Key((*at.path, 0), at.chosen))
    properties = node.get("properties", {})
    name = properties.get("name", {}).get("const")
    inside = at if name is None else Key(at.path, (*at.chosen, (at.path, name)))
    for key, below in properties.items():
        if key != "name" or name is None:
            here = Key((*inside.path, key), inside.chosen, frozenset(_types(below)))
            yield here
            yield from _keys(schema, below, here)


def _types(node: dict[str, Any]) -> Iterator[str]:
    for branch in node.get("anyOf", [node]):
        yield str(branch.get("type", "string" if "enum" in branch else "object"))


def fits(value: Any, types: frozenset[str]) -> bool:
    """Whether the value's type, though not the value, is one of a key's."""
    names = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    name = names.get(type(value), "null")
    return name in types or (name == "integer" and "number" in types)


def base_config(bench: Path, stage: str) -> dict[str, Any]:
    """A config that is in order, on the tiny model of `bench`."""
    data = {"sft": "alpaca.jsonl", "dpo": "pairs.jsonl", "reward": "pairs.jsonl", "kto": "feedback.jsonl"}
    return {
        "stage": stage,
        "model": {"path": str(bench / "model"), "dtype": "fp32"},
        "data": {
            "path": [{"path": str(bench / data.get(stage, "text.jsonl"))}],
            "max_length": 96,
            "cache_dir": str(bench / "cache"),
        },
        "train": {"micro_batch_size": 4, "max_steps": 2, "peak_tflops": 1},
        "loggers": ["metrics_json"],
        "output_dir": str(bench / "out"),
    }


def config_with(bench: Path, key: Key, value: Any) -> dict[str, Any]:
    """The config in which only `key` is odd."""
    config = base_config(bench, _stage_for(key))
    data = config["data"]
    for path, name in key.chosen:
        if path[0] == "data":  # a format: rows of it
            data["path"][0]["path"] = str(bench / f"{name}.jsonl")
    if key.path[:2] in (("data", "path"), ("data", "eval_path")):
        entry = data["path"][0]
        data[key.path[1]] = entry if len(key.path) > 2 and isinstance(key.path[2], str) else [entry]
    for path, name in key.chosen:
        _put(config, path, {"name": name})
    _put(config, key.path, copy.deepcopy(value))
    return config


def _stage_for(key: Key) -> str:
    for path, name in key.chosen:
        if path == ("stage",):
            return name
        if path == ("loss",):
            kind = REGISTRY.get("losses", name).loss_kind
            stages = [provided.record for provided in REGISTRY.all("stages")]
            return next(record.name for record in stages if record.loss_kind == kind)
        if path == ("adapter",) or (path[0] == "data" and name != "text"):
            return "sft"
    return "pretrain"


def _put(config: dict[str, Any], path: Path_, value: Any) -> None:
    at: Any = config
    for part, following in pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(part, int):
            at.extend([{}] * (part + 1 - len(at)))
            at[part] = at[part] if isinstance(at[part], type(empty)) else empty
        elif not isinstance(at.get(part), type(empty)):
            at[part] = empty
        at = at[part]
    if isinstance(path[-1], int):
        at.extend([{}] * (path[-1] + 1 - len(at)))
    at[path[-1]] = value


def make_bench(directory: Path) -> Path:
    """Model, tokenizer and data for every stage, and odd files in `odd/`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    bench = workbench(directory)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bench / "model")).save_pretrained(bench / "model")
    ask, answers = [sentence(i, 4) for i in range(40)], [sentence(i + 1, 2 + i % 9) for i in range(41)]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("pairs", "feedback", "alpaca", "sharegpt", "openai")}
    for i in range(40):
        rows["pairs"].append({"instruction": ask[i], "chosen": answers[i], "rejected": answers[i + 1]})
        rows["feedback"].append({"prompt": ask[i], "completion": answers[i], "label": i % 2 == 0})
        rows["alpaca"].append({"instruction": ask[i], "output": answers[i]})
        turns = (("human", "user", ask[i]), ("gpt", "assistant", answers[i]))
        rows["sharegpt"].append({"conversations": [{"from": speaker, "value": text} for speaker, _, text in turns]})
        rows["openai"].append({"messages": [{"role": role, "content": text} for _, role, text in turns]})
    for name, items in rows.items():
        (bench / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    odd = bench / "odd"
    odd.mkdir()
    os.mkfifo(odd / "pipe.jsonl")
    (odd / "link.jsonl").symlink_to(odd / "link.jsonl")
    (odd / "empty.json").touch()
    (odd / "bytes.json").write_bytes(bytes(range(256)))
    (odd / "deep.json").write_text("[" * 20_000)
    (odd / "object.json").write_text('{"text": "a", "train_batch_size": 1}')
    return bench


def values(bench: Path) -> list[Any]:
    """Values of wrong types, extremes, texts that are hard to print or to open, and paths of odd files."""
    odd = bench / "odd"
    numbers: list[Any] = [0, -1, 1, 2, 7, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30), "1e5", "-0", "1_0", "0x10"]
    fractions = [0.5, 1.0, -0.0, 1e-300, 5e-324, 1e30, 1e300, 1.7e308, -1e308, float("nan"), float("inf")]
    texts = [
        "",
        " ",
        "a",
        "auto",
        "null",
        "none",
        "~",
        "~nobody/x",
        "*",
        "**/*",
        "[",
        "{{x}}",
        "${HOME}",
        "%s",
        "-",
        "é",
    ]
    texts += [
        "\x1b[31m",
        "a\nb",
        "a\0b",
        "\u202eabc",
        "\ud83d\ude00",
        "(a+)+$",
        "(",
        "x" * 300,
        "y/" * 3000,
        "z" * 100_000,
    ]
    texts += ["9" * 400 + "h", "99999999999999999999h", "0GB", "9" * 400 + "GB", "1s", "all-linear", ".*", "deepspeed"]
    files = [bench, bench / "model", odd / "pipe.jsonl", odd / "link.jsonl", odd / "empty.json", odd / "bytes.json"]
    files += [
        odd / "deep.json",
        odd / "object.json",
        odd / "none" / "none.json",
        bench / "chat.json",
        bench / "text.jsonl",
    ]
    # not "/": a test that runs as root would write its cache there
    paths = [str(path) for path in files] + ["/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/fd", "."]
    lists = [[], [[]], [None], [0], ["a", "a"], ["a", None], [{}], [1, 2, 3], [0.9, 0.999], ["q_proj"], ["x"] * 1000]
    mappings = [{}, {"name": None}, {"name": ""}, {"name": "a"}, {"": 1}, {"path": "a"}, {"a": {"b": [{"c": None}]}}]
    deep: Any = "a"
    for _ in range(70):
        deep = [deep]
    return [None, True, False, *numbers, *fractions, *texts, *paths, *lists, *mappings, deep]
