"""What saving costs training: checkpoints written beside training, against training that waits for the files.

    python benchmarks/saving.py --parameters-in-millions 20 --steps 30 --save-steps 10

Trains the same model on made-up text three times in alternation: without checkpoints, with them in the foreground, and
in the background. Prints seconds per step, and the share of the time that training stood still, as `bumble run` says.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import yaml

WAYS = {
    "no checkpoints": {"save_steps": None},
    "foreground": {"background": False},
    "background": {"background": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters-in-millions", type=float, default=20.0, help="about how large a model")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--save-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bumble-saving-") as place:
        config = prepare(Path(place), args)
        found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way, checkpoint in WAYS.items():
                found[way].append(measure(config, way, {"save_steps": args.save_steps, **checkpoint}))
    print(f"{'':<16}{'s/step':>8}{'stalled':>10}{'wall s':>8}")
    for way, runs in found.items():
        step, share, wall = (median(column) for column in zip(*runs, strict=True))
        print(f"{way:<16}{step:>8.3f}{share:>10.1%}{wall:>8.1f}")


def prepare(place: Path, args: argparse.Namespace) -> Path:
    """Writes a model config, a tokenizer, text and a run config."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    words = [f"w{number}" for number in range(4000)]
    vocabulary = {word: at for at, word in enumerate(["<eos>", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(place / "model")
    hidden = 384
    layers = max(1, round((args.parameters_in_millions * 1e6 - 4001 * hidden) / (hidden * hidden * 13)))
    Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=0,
    ).save_pretrained(place / "model")
    chance = random.Random(0)
    rows = [{"text": " ".join(chance.choices(words, k=120))} for _ in range(8 * args.steps)]
    (place / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "stage": "pretrain",
        "model": {"path": str(place / "model")},
        "data": {"path": str(place / "text.jsonl"), "cache_dir": str(place / "cache")},
        "train": {"micro_batch_size": 8, "max_steps": args.steps},
        "checkpoint": {"save_every": None, "save_last": False, "save_total_limit": 2},
        "loggers": ["metrics_json"],
        "output_dir": str(place / "out"),
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    return place / "run.yaml"


def measure(config: Path, way: str, checkpoint: dict[str, object]) -> tuple[float, float, float]:
    """(median seconds of a step, share of the time that saving took, seconds of wall time) of one run."""
    command = [sys.executable, "-m", "bumblecore_core", "run", str(config), "--overwrite"]
    for key, value in checkpoint.items():
        command += ["--set", f"checkpoint.{key}={json.dumps(value)}"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    wall = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{way}:\n{done.stderr}")
    history = json.loads((config.parent / "out" / "metrics.json").read_text())
    share = re.search(r"took ([\d.]+)% of the training time", done.stdout)
    seconds = median(1 / entry["steps_per_second"] for entry in history[1:])
    return seconds, float(share[1]) / 100 if share else 0.0, wall


if __name__ == "__main__":
    main()
