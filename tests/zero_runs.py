"""Runs of the engine `deepspeed` on two gloo ranks, several under one launch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dpo_runs import dpo_bench, dpo_settings
from forked_ranks import run_ranks
from resume_runs import settings_of
from workbench import write_config

STEPS, SAVED = 4, 2
"""One epoch of the rows by six, the last window short; and the steps after which a checkpoint is saved."""
ROWS = 22
METHODS = ("sft", "sft_untied", "sft_packed", "sft_lora", "dpo", "dpo_lora", "dpo_reference")
"""The last: DPO against a reference model of its own, with other weights than the start model's."""
DRIVER = """
import gc, json, os, sys
import deepspeed
from bumblecore_core.cli import main
from bumblecore_plugins.engines.deepspeed_engine import DeepSpeedEngine
from bumblecore_core.run.checkpoint.saver import Saver

gc.freeze()  # DeepSpeed collects garbage at many points: without what imports made that takes no time
places = {"engine": DeepSpeedEngine, "saver": Saver}
place, method, rank, call = json.loads(sys.argv[3])
if place:
    plain, calls = getattr(places[place], method), []

    def deadly(self, *given, **named):
        calls.append(None)
        if os.environ["RANK"] == str(rank) and len(calls) == call:
            os.kill(os.getpid(), 9)
        return plain(self, *given, **named)

    setattr(places[place], method, deadly)
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        codes.append(ended.code or 0)
with open(sys.argv[2] + "." + os.environ["RANK"], "w") as file:
    json.dump(codes, file)
"""
IMPORTS = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "torch._inductor.compile_fx")
"""What DeepSpeed imports in each rank, which takes seconds."""
NO_DEATH = ("", "", 0, 0)


def zero_bench(directory: Path) -> Path:
    """A workbench with conversations, pairs, a start model, in `other` one of the same shape, and one in `untied`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    bench = dpo_bench(directory)
    for name in ("chat", "pairs"):
        rows = json.loads((bench / f"{name}.json").read_text())
        (bench / f"few-{name}.json").write_text(json.dumps(rows[:ROWS]))
    config = AutoConfig.from_pretrained(bench / "start" / "final", tie_word_embeddings=False)
    shutil.copytree(bench / "start" / "final", bench / "untied")
    AutoModelForCausalLM.from_config(config).save_pretrained(bench / "untied")
    shutil.copytree(bench / "start" / "final", bench / "other")
    file = bench / "other" / "model.safetensors"
    save_file({name: weight * 1.5 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    return bench


def zero_settings(bench: Path, method: str, name: str, *, ranks: int, dtype: str = "fp32") -> dict[str, Any]:
    """Six rows in a step on `ranks` processes: two at a time, accumulated (packed: no accumulation on two ranks)."""
    packed = method == "sft_packed"
    accumulated = (2 if packed else 6) // ranks
    changes: dict[str, Any] = {
        "train": {
            "max_steps": STEPS,
            "eval_steps": None,
            "micro_batch_size": 3 if packed else 1,
            "gradient_accumulation_steps": accumulated,
        },
        "checkpoint": {"save_steps": SAVED},
        "adapter": {"name": "lora", "rank": 4} if method.endswith("lora") else None,
    }
    if packed:
        changes["data"] = {"packing": True, "max_length": 96}
    make = dpo_settings if method.startswith("dpo") else settings_of
    given = (bench, name) if method.startswith("dpo") else (bench, "sft", name)
    settings = make(*given, **changes)
    if not packed:  # packed, the rows of the workbench make as many steps
        settings["data"]["path"] = str(bench / f"few-{'pairs' if method.startswith('dpo') else 'chat'}.json")
    if method == "sft_untied":
        settings["model"]["path"] = str(bench / "untied")
    if method == "dpo_reference":
        settings["stage"] = {"name": "dpo", "reference": str(bench / "other")}
    settings["model"]["dtype"] = dtype
    settings["data"]["cache_dir"] = str(bench / f"cache-{name}")
    return settings


def written(bench: Path, settings: dict[str, Any], **engine: Any) -> str:
    """The path of a config file with these settings and this engine."""
    settings["engine"] = {"timeout_seconds": 60, **engine}
    return str(write_config(bench / f"{Path(settings['output_dir']).name}.yaml", **settings))


def on_ranks(
    bench: Path, runs: Iterable[Sequence[str]], *, ranks: int = 2, death: tuple = NO_DEATH
) -> list[list[int]] | None:
    """Runs `bumble` with each of the argument lists in the same processes; the exit codes of each rank.

    `death`: (engine or saver, method, rank, call): that rank kills itself at that call; None is returned then.
    """
    (bench / "driver.py").write_text(DRIVER)
    arguments = json.dumps(list(map(list, runs))), str(bench / "codes"), json.dumps(death)
    done = run_ranks(bench / "driver.py", *arguments, ranks=ranks, timeout=900, imports=IMPORTS)
    if death != NO_DEATH:
        assert done.returncode != 0
        return None
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads((bench / f"codes.{rank}").read_text()) for rank in range(ranks)]


def losses(bench: Path, name: str) -> list[float]:
    """The training and evaluation losses of a run."""
    return [entry["loss"] for entry in json.loads((bench / name / "metrics.json").read_text())]
