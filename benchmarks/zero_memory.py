"""What each rank holds while the engine `deepspeed` trains at ZeRO 0 to 3 on CPU processes, in bytes per parameter.

    python benchmarks/zero_memory.py --json memory.json

Trains the same model with one process, and with several at each stage, with bf16 and with float32 gradients. Each rank
reads its own resident size, less that of before the model was there, and sums up its live tensors. Prints the rank
that holds the most beside the arithmetic of ZeRO (weights 2, gradients 2 or 4, masters and moments 12 bytes, each whole
or divided by the number of ranks), and what rank 0 holds more while it saves. The script is also the plugin that
measures: it registers an engine `watched`, which is `deepspeed` with eyes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bumblecore_core import EngineRecord, hookimpl
from bumblecore_plugins.engines import DeepSpeedOptions

HIDDEN, WORDS, LENGTH = 768, 1000, 64
PLACE = "BUMBLE_ZERO_MEMORY"
"""The environment variable that says where each rank leaves its figures."""
MIB = 2**20
TRAINING = ("tensors", "after backward", "peak", "peak in step", "after step")
BESIDE = ("loading, peak", "baseline MiB", "other MiB", "saving, copies of the weights")


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(prefix="bumble-zero-memory-") as place:
        config = prepare(Path(place), args)
        found = []
        for setting in settings(args):
            started = time.perf_counter()
            ranks = measure(config, **setting)
            found.append({**setting, "seconds": time.perf_counter() - started, "ranks": ranks})
            if args.json is not None:
                args.json.write_text(json.dumps(found, indent=1))
            print(f"{len(found)}: {setting} {found[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(table(found)))


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments. Exits with a usage message for such that mean nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters-in-millions", type=float, default=100.0, help="about how large a model")
    parser.add_argument("--nproc", type=int, default=2, help="CPU processes of the sharded runs, one thread each")
    parser.add_argument("--stages", default="0,1,2,3", help="ZeRO stages to measure")
    parser.add_argument("--gradients", default="bf16,fp32", help="what gradients are accumulated in")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps; the last one is measured")
    parser.add_argument("--bucket", type=int, help="elements of DeepSpeed's buckets; without it, what the engine sets")
    parser.add_argument("--json", type=Path, help="a file for all that each rank measured, in bytes")
    args = parser.parse_args(given)
    args.stages = args.stages.split(",")
    args.gradients = args.gradients.split(",")
    if not set(args.stages) <= set("0123"):
        parser.error("--stages: 0, 1, 2 and 3, with commas between them")
    if not set(args.gradients) <= {"bf16", "fp32"}:
        parser.error("--gradients: bf16, fp32 or both, with a comma between them")
    if args.nproc < 2 or args.steps < 2:
        parser.error("--nproc and --steps: 2 or more (the first step makes the optimizer's state)")
    args.stages = [int(stage) for stage in args.stages]
    return args


def settings(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs: one process without sharding, then each stage."""
    return [
        {"nproc": nproc, "stage": stage, "gradients": gradients, "steps": args.steps, "bucket": args.bucket}
        for gradients in args.gradients
        for nproc, stage in [(1, 0), *((args.nproc, stage) for stage in args.stages)]
        if nproc > 1 or gradients == args.gradients[0]
    ]


def predicted(*, stage: int, nproc: int, gradients: str) -> float:
    """Bytes per parameter on a rank when backward has ended: ZeRO's arithmetic, without buckets and activations."""
    parts = {"weights": 2, "gradients": 2 if gradients == "bf16" else 4, "masters and moments": 12}
    sharded_from = {"weights": 3, "gradients": 2, "masters and moments": 1}
    return sum(size / (nproc if stage >= sharded_from[name] else 1) for name, size in parts.items())


def per_parameter(rank: Mapping[str, Any]) -> list[float]:
    """A rank's figures for `TRAINING` in bytes per parameter; resident sizes less the baseline."""
    resident = [rank[name] - rank["baseline"] for name in ("backward", "backward_peak", "step_peak", "after")]
    return [size / rank["parameters"] for size in (rank["tensors"], *resident)]


def saving(rank: Mapping[str, Any]) -> list[float]:
    """What the process holds more while it saves, for each save: in copies of the model's weights in bf16."""
    return [(save["peak"] - save["before"]) / (2 * rank["parameters"]) for save in rank["saves"]]


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown: for each run the largest of its ranks."""
    training = [("gradients", "ranks", "ZeRO", "predicted", *TRAINING), ("---",) * (4 + len(TRAINING))]
    beside = [("gradients", "ranks", "ZeRO", *BESIDE), ("---",) * (3 + len(BESIDE))]
    for run in found:
        ranks, name = run["ranks"], (run["gradients"], str(run["nproc"]), str(run["stage"]))
        most = [max(figures) for figures in zip(*map(per_parameter, ranks), strict=True)]
        expected = predicted(stage=run["stage"], nproc=run["nproc"], gradients=run["gradients"])
        training.append((*name, *(f"{one:.1f}" for one in (expected, *most))))
        loading = max((rank["loading_peak"] - rank["baseline"]) / rank["parameters"] for rank in ranks)
        baseline = max(rank["baseline"] for rank in ranks) / MIB
        other = max(rank["trimmed"] - rank["baseline"] - rank["after_tensors"] for rank in ranks) / MIB
        saves = ", ".join(f"{max(grown):.2f}" for grown in zip(*map(saving, ranks), strict=True))
        beside.append((*name, f"{loading:.1f}", f"{baseline:,.0f}", f"{other:,.0f}", saves))
    return ["\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n" for rows in (training, beside)]


def prepare(place: Path, args: argparse.Namespace) -> Path:
    """Writes a model config, a tokenizer, text and a run config."""
    import yaml
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    words = [f"w{number}" for number in range(WORDS)]
    vocabulary = {word: at for at, word in enumerate(["<eos>", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(place / "model")
    Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=max(1, round(args.parameters_in_millions * 1e6 / (13 * HIDDEN * HIDDEN))),
        num_attention_heads=HIDDEN // 64,
        num_key_value_heads=HIDDEN // 64,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=0,
    ).save_pretrained(place / "model")
    chance = random.Random(0)
    rows = [{"text": " ".join(chance.choices(words, k=LENGTH - 1))} for _ in range(4 * args.nproc * args.steps)]
    (place / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "stage": "pretrain",
        "model": {"path": str(place / "model"), "dtype": "bf16"},
        "data": {"path": str(place / "text.jsonl"), "cache_dir": str(place / "cache")},
        "optimizer": {"name": "adamw"},
        "train": {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": args.steps},
        "checkpoint": {"save_every": None, "save_steps": args.steps, "save_last": True},
        "loggers": [],
        "output_dir": str(place / "out"),
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    return place / "run.yaml"


def measure(
    config: Path, *, nproc: int, stage: int, gradients: str, steps: int, bucket: int | None
) -> list[dict[str, Any]]:
    """What each rank of one run has noted."""
    place = config.parent
    engine: dict[str, Any] = {"name": "watched", "zero_stage": stage, "device": "cpu"}
    if bucket is not None:
        names = ["reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"]
        (place / "deepspeed.json").write_text(json.dumps({"zero_optimization": dict.fromkeys(names, bucket)}))
        engine["config_file"] = str(place / "deepspeed.json")
    command = [sys.executable, "-m", "bumblecore_core", "-p", Path(__file__).stem, "run", str(config), "--overwrite"]
    command += [f"--set=engine={json.dumps(engine)}"]
    command += [f"--set=train.float32_gradients={json.dumps(gradients == 'fp32')}", f"--nproc={nproc}"]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", PLACE: str(place)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{nproc} processes, stage {stage}:\n{done.stdout}{done.stderr}")
    return [json.loads((place / f"rank-{rank}.json").read_text()) for rank in range(nproc)]


class Watched:
    """The engine `deepspeed`, noting this process's memory on the way. Linux alone: it resets the kernel's peak."""

    def __init__(self, engine: Any) -> None:
        from bumblecore_plugins.engines.deepspeed_library import load_deepspeed

        load_deepspeed()  # now, so that the libraries are in the baseline
        import transformers.models.qwen3.modeling_qwen3  # noqa: F401

        self._engine, self._in_window = engine, False
        self._notes: dict[str, Any] = {"baseline": resident("VmRSS"), "saves": []}
        reset_peak()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prepare(self, *, module: Any, **given: Any) -> None:
        self._notes["parameters"] = sum(parameter.numel() for parameter in module.parameters())
        self._engine.prepare(module=module, **given)
        self._notes["loading_peak"] = resident("VmHWM")

    def forward_backward(self, *, last: bool, **given: Any) -> Any:
        if not self._in_window:
            reset_peak()
        output, self._in_window = self._engine.forward_backward(last=last, **given), not last
        if last:
            self._notes |= {"backward": resident("VmRSS"), "backward_peak": resident("VmHWM")}
            self._notes["tensors"] = live_tensors()
        return output

    def step(self, *, gradient_scale: float) -> Any:
        reset_peak()
        result = self._engine.step(gradient_scale=gradient_scale)
        self._notes |= {"step_peak": resident("VmHWM"), "after": resident("VmRSS"), "after_tensors": live_tensors()}
        return result

    def model_state(self, **given: Any) -> Any:
        self._end_of_save()
        trim()
        self._notes.setdefault("trimmed", resident("VmRSS"))
        self._notes["saves"].append({"before": resident("VmRSS")})
        reset_peak()
        state = self._engine.model_state(**given)
        self._notes["saves"][-1]["gathered"] = resident("VmHWM")
        return state

    def close(self) -> None:
        self._end_of_save()
        self._engine.close()
        (Path(os.environ[PLACE]) / f"rank-{self._engine.rank}.json").write_text(json.dumps(self._notes))

    def _end_of_save(self) -> None:
        if self._notes["saves"]:
            self._notes["saves"][-1].setdefault("peak", resident("VmHWM"))


def resident(name: str) -> int:
    """Bytes of this process: VmRSS, the resident size, or VmHWM, its peak since the last `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024


def reset_peak() -> None:
    """Has the peak begin anew at the present resident size."""
    Path("/proc/self/clear_refs").write_text("5")


def trim() -> None:
    """Has the C library give back what it keeps of freed memory, which the next allocations would hide in."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def live_tensors() -> int:
    """Bytes of the CPU storages behind all tensors that Python reaches; each storage once."""
    import torch

    storages: dict[int, int] = {}
    for one in gc.get_objects():
        if not issubclass(type(one), torch.Tensor):
            continue
        for tensor in (one, one.grad if one.is_leaf else None):
            if tensor is not None and tensor.device.type == "cpu" and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _build(*, options: DeepSpeedOptions, context: Any) -> Watched:
    from bumblecore_plugins.engines.deepspeed_engine import DeepSpeedEngine

    return Watched(DeepSpeedEngine(options=options, context=context))


@hookimpl
def bumble_engines() -> list[EngineRecord]:
    """The engine that is measured."""
    return [
        EngineRecord(
            name="watched",
            summary="The engine deepspeed, noting what memory it takes.",
            build=_build,
            options=DeepSpeedOptions,
            reshaping=("zero_stage",),
        )
    ]


if __name__ == "__main__":
    main()
