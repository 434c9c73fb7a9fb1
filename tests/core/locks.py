"""The lock of a run, and locks that differ from it in chosen values."""

from __future__ import annotations

from typing import Any

from bumblecore_core.run.lock import FORMAT

GONE = object()


def make_lock() -> dict[str, Any]:
    """The lock of a fine-tuning run with an adapter."""

    def plugin(kind, name, distribution="bumblecore"):
        return {"kind": kind, "name": name, "distribution": distribution, "version": "1.0", "options_sha256": "0" * 64}

    return {
        "format": FORMAT,
        "config": {
            "stage": {"name": "sft"},
            "model": {"path": "base", "tokenizer": None, "dtype": "bf16", "chat_template": None, "layers": [1, 2]},
            "adapter": {"name": "lora", "rank": 8},
            "data": {"path": ["a.jsonl"], "eval_path": "b.jsonl", "max_length": 64, "num_workers": 2, "cache_dir": "c"},
            "optimizer": {"name": "lion", "lr": 1e-3, "table": "t.json"},
            "train": {"micro_batch_size": 2, "gradient_accumulation_steps": 3, "seed": 0, "logging_steps": 1},
            "checkpoint": {"save_steps": 5, "resume": "auto"},
            "loggers": [{"name": "console"}],
            "output_dir": "out",
        },
        "world_size": 2,
        "plugins": [
            plugin("stages", "sft"),
            plugin("losses", "cross_entropy"),
            {**plugin("optimizers", "lion", "lion-plugin"), "files": {"table": "t" * 64}},
            plugin("loggers", "board", "board-plugin"),
        ],
        "libraries": {"python": "3.11.1", "bumblecore": "1.0", "torch": "2.9", "numpy": "2.0"},
        "data": {"content": "d" * 64, "weights": [1.0], "examples": 1234},
        "evaluation_data": {"content": "e" * 64, "weights": [1.0], "examples": 5},
        "tokenizer": "t" * 64,
        "model": {"config": {"hidden_size": 32, "rope": {"theta": 1e4}, "eos": [1, 2]}, "weights": "w" * 64},
    }


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """`make_lock()` with values put at dotted paths; GONE takes one away."""
    lock = make_lock()
    for path, value in changes:
        *parents, last = path.split(".")
        inner = lock
        for key in parents:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        last = int(last) if isinstance(inner, list) else last
        if value is GONE:
            del inner[last]
        else:
            inner[last] = value
    return lock
