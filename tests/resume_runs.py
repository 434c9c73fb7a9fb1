"""Runs for the tests of resuming: settings whose every stream matters, run in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bumblecore_core.cli import main
from bumblecore_core.run.checkpoint.compare import checkpoint_differences, history_differences
from workbench import make_model_config, pretrain_settings, workbench, write_config

STEPS = 9
ROWS_IN_A_STEP = 6  # 40 rows: seven steps an epoch, the last of them short


def bench_of(directory: Path) -> Path:
    """A workbench with a start model for fine-tuning in `start/final`, and twins of both models with dropout."""
    bench = workbench(directory)
    make_model_config(bench / "dropout", attention_dropout=0.2)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bench / "dropout" / file).write_bytes((bench / "model" / file).read_bytes())
    run(bench, {**pretrain_settings(bench, max_steps=1), "output_dir": str(bench / "start"), "loggers": []})
    shutil.copytree(bench / "start" / "final", bench / "start-dropout")
    config = json.loads((bench / "start-dropout" / "config.json").read_text())
    (bench / "start-dropout" / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    return bench


def settings_of(bench: Path, stage: str, name: str, *, dropout: bool = False, **changes: Any) -> dict[str, Any]:
    """A run that ends in its second epoch, with dropout or packing, evaluation, accumulation, decay and a warm-up."""
    settings = pretrain_settings(bench, max_steps=STEPS, micro_batch_size=2, gradient_accumulation_steps=3)
    settings["stage"] = stage
    start = "model" if stage == "pretrain" else "start"
    if dropout:
        start = {"model": "dropout", "start": "start-dropout"}[start]
    settings["model"]["path"] = str(bench / start)
    settings["data"]["path"] = str(bench / ("chat.json" if stage == "sft" else "text.jsonl"))
    settings["train"]["eval_steps"] = 3
    settings["scheduler"] = {"name": "cosine", "warmup_steps": 3}
    settings["optimizer"] = {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1}
    settings["checkpoint"] = {"save_steps": 1, "save_total_limit": None}
    settings["loggers"] = ["metrics_json"]
    settings["output_dir"] = str(bench / name)
    for section, values in changes.items():
        if isinstance(values, dict) and section != "scheduler":
            settings[section] = {**settings.get(section, {}), **values}
        else:
            settings[section] = values
    warmup = settings["scheduler"].get("warmup_steps", 0) if isinstance(settings["scheduler"], dict) else 0
    steps = settings["train"]["max_steps"]
    if steps is not None and warmup > steps:  # a run that a test has shortened
        settings["scheduler"] = {**settings["scheduler"], "warmup_steps": settings["train"]["max_steps"]}
    settings["data"].setdefault("eval_path", str(bench / ("eval.json" if stage == "sft" else "eval.jsonl")))
    return settings


def run(bench: Path, settings: dict[str, Any], *options: str) -> int:
    """The exit code of `bumble run`."""
    config = write_config(bench / f"{Path(settings['output_dir']).name}.yaml", **settings)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config), *options])
    return int(ended.value.code or 0)


def differences(left: Path, right: Path, steps: int = STEPS) -> list[str]:
    """What differs between two runs: their histories, the checkpoint of the last step, the final model."""
    found = history_differences(left / "metrics.json", right / "metrics.json")
    for name in (f"checkpoint-{steps}", "final"):
        assert (left / name).is_dir()
        assert (right / name).is_dir()
        found += [f"{name}: {line}" for line in checkpoint_differences(left / name, right / name)]
    return found
