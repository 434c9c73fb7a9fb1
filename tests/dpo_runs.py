"""Small DPO runs for tests: a workbench with ragged pairs, settings, and what runs report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bumblecore_core.cli import main
from resume_runs import bench_of, settings_of
from workbench import EVAL_ROWS, sentence, write_config

ADAPTER = {"name": "lora", "rank": 4}


def dpo_bench(directory: Path) -> Path:
    """The workbench of the tests of resuming, with `pairs.json`, and `eval-pairs.json` of a few."""
    bench = bench_of(directory)
    (bench / "pairs.json").write_text(json.dumps([_pair(i) for i in range(40)]))
    (bench / "eval-pairs.json").write_text(json.dumps([_pair(i) for i in range(EVAL_ROWS)]))
    return bench


def _pair(i: int) -> dict[str, str]:
    return {
        "instruction": sentence(i, 3 + i % 5),
        "input": "",
        "chosen": sentence(i + 1, 2 + i * 3 % 17),
        "rejected": sentence(i + 2, 1 + i * 5 % 13),
    }


def dpo_settings(bench: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A run over the pairs; runs whose names begin alike (up to a dash) share a cache."""
    stage = changes.pop("stage", "dpo")
    settings = {**settings_of(bench, "dpo", name, **changes), "stage": stage}
    settings["data"] |= {"path": str(bench / "pairs.json"), "eval_path": str(bench / "eval-pairs.json")}
    settings["data"]["max_length"] = 96
    settings["data"]["cache_dir"] = str(bench / f"cache-{name.split('-')[0]}")
    return settings


def run(bench: Path, settings: dict[str, Any], *options: str, code: int = 0) -> None:
    """`bumble run`, which must end with `code`."""
    config = write_config(bench / "dpo.yaml", **settings)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config), *options])
    assert (ended.value.code or 0) == code


def entries(bench: Path, name: str, split: str | None = None) -> list[dict[str, Any]]:
    """What a run logged, of training and evaluation or of one of them."""
    found = json.loads((bench / name / "metrics.json").read_text())
    return [entry for entry in found if split in (None, entry["split"])]
