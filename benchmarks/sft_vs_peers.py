"""Supervised fine-tuning by BumbleCore, transformers' Trainer and TRL's SFTTrainer: speed, memory and losses.

    pip install 'bumblecore[bench]'
    python benchmarks/sft_vs_peers.py --preset large-vocab --dtype bf16

All start from the same saved weights and train on the same tokens, in the same order, with the same optimizer steps,
each run in a fresh process, in alternation. A peer runs in the fastest of its settings, which a short pilot finds;
BumbleCore is `bumble run` with its defaults, and beside a peer whose weights and optimizer state are in bf16 also with
its own like that. The first step of every run warms up and is not timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from processes import (
    MIB,
    TOLD,
    RunFailed,
    add_common_options,
    bumble_run,
    fastest,
    in_turn,
    machine,
    peers_run,
    set_up,
)
from setting import (
    FRAMEWORKS,
    PILOT_STEPS,
    SET,
    like,
    loss_distance,
    ratios,
    summarize,
    tokens_per_second,
    variants,
)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=48, help="rows to train on, once each")
    parser.add_argument("--batch-size", type=int, default=8, help="rows in an optimizer step")
    parser.add_argument("--data", type=Path, help="alpaca rows, JSON or a row a line; made up when not given")
    parser.add_argument("--frameworks", default=",".join(FRAMEWORKS), help="which to run, in this order")
    parser.add_argument("--variants", default="fastest", help="fastest: by a pilot; all; or names, with commas")
    add_common_options(parser)
    args = parser.parse_args(given)
    args.frameworks = args.frameworks.split(",")
    unknown = [name for name in args.frameworks if name not in FRAMEWORKS]
    if unknown:
        parser.error(f"--frameworks: no {', '.join(unknown)} among {', '.join(FRAMEWORKS)}")
    if args.rows <= args.batch_size:
        parser.error("--rows: more than one step is needed, for the first is not timed")
    return args


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(prefix="sft-vs-peers-") as place:
        bench = Bench(args, Path(place))
        bench.prepare()
        print(bench.title(), flush=True)
        figures = bench.figures(bench.measure(bench.candidates()))
    print_table(figures)
    if args.json:
        facts = {key: bench.setting[key] for key in TOLD}
        found = {**facts, **bench.facts, "machine": machine(), "frameworks": figures, "ratios": ratios(figures)}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


class Bench:
    """One comparison in one directory."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args, self.directory = args, directory
        self.facts: dict[str, Any] = {}
        self.processes, self.setting = set_up(args, directory, rows=args.rows)

    def prepare(self) -> None:
        """Weights, tokenizer and rows."""
        self.processes.run_part("prepare.py", str(self.directory / "setting.json"))
        self.facts = json.loads((self.directory / "facts.json").read_text())

    def title(self) -> str:
        setting, facts = self.setting, self.facts
        tokens, trained = sum(facts["step_tokens"]), sum(facts["step_trained_tokens"])
        return (
            f"{setting['preset']}: {facts['parameters'] / 1e6:.1f} M parameters, vocabulary "
            f"{facts['model']['vocab_size']}; {setting['rows']} rows, {tokens} tokens ({trained} trained), "
            f"{len(facts['step_tokens'])} steps of {setting['batch_size']} rows; {setting['dtype']}, "
            f"{'GPU' if setting['on_gpu'] else 'CPU'}, {setting['threads']} threads"
        )

    def candidates(self) -> list[tuple[str, str]]:
        """(framework, variant) pairs to measure: of each peer the fastest by the pilot where there is a choice, and
        BumbleCore in each setting that is like one of theirs."""
        chosen = []
        for framework in self.args.frameworks:
            if framework == "bumble":
                continue
            names = variants(framework, self.args.dtype)
            if self.args.variants not in ("fastest", "all") and len(names) > 1:
                names = [name for name in names if name in self.args.variants.split(",")]
            if self.args.variants == "fastest" and len(names) > 1:
                names = [self._fastest(framework, names)]
            chosen += [(framework, name) for name in names]
        if "bumble" not in self.args.frameworks:
            return chosen
        wanted = {like(name) for _, name in chosen} or set(variants("bumble", self.args.dtype))
        return [("bumble", name) for name in variants("bumble", self.args.dtype) if name in wanted] + chosen

    def measure(self, candidates: list[tuple[str, str]]) -> dict[str, list[dict[str, Any]]]:
        """Runs of each candidate, in alternation; see `in_turn`."""
        return in_turn(candidates, self.args.rounds, self.run, self._told)

    def figures(self, runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        figures = {key: summarize(found, self.facts["step_tokens"]) for key, found in runs.items()}
        own = {found["variant"]: found for key, found in figures.items() if key.split(" ")[0] == "bumble"}
        for found in figures.values():
            reference = own.get(like(found["variant"]))
            found["loss_distance"] = loss_distance(found["losses"], reference["losses"]) if reference else None
        return figures

    def run(self, framework: str, variant: str, steps: int = 0) -> dict[str, Any]:
        """Seconds and loss of each step, and the process's peaks of memory."""
        if framework == "bumble":
            return self._run_bumble(variant)
        return peers_run(self.processes, "hf_worker.py", framework, variant, str(steps))

    def _run_bumble(self, variant: str) -> dict[str, Any]:
        given = {"step_tokens": self.facts["step_tokens"], "on_gpu": self.setting["on_gpu"]}
        return bumble_run(self.processes, "bumble.yaml", variant, SET[variant], **given)[0]

    def _fastest(self, framework: str, names: list[str]) -> str:
        """The variant with the most tokens a second over a few steps."""
        steps = min(PILOT_STEPS, len(self.facts["step_tokens"]))
        return fastest(framework, names, lambda *candidate: self.run(*candidate, steps), self._speed, self._told)

    def _speed(self, run: dict[str, Any]) -> float:
        return tokens_per_second(self.facts["step_tokens"][: len(run["seconds"])], run["seconds"])

    def _told(self, what: str, run: dict[str, Any]) -> None:
        print(f"{what}: {self._speed(run):.1f} tokens/s, {run['peak_rss_bytes'] / MIB:.0f} MiB", flush=True)


def print_table(figures: dict[str, dict[str, Any]]) -> None:
    """One line per framework, the losses, and the ratios."""
    columns = " ".join(f"{name:>8}" for name in ("tokens/s", "step s", "RSS MiB", "CUDA MiB", "loss Δ"))
    print(f"\n{'framework':<22} {'setting':<26} {columns}")
    for key, found in figures.items():
        distance = "" if found["loss_distance"] is None else f"{found['loss_distance']:.1e}"
        name = FRAMEWORKS[key.split(" ")[0]]
        print(
            f"{name:<22} {found['variant']:<26} {found['tokens_per_second']:>8.1f} {found['step_seconds']:>8.2f} "
            f"{found['peak_rss_bytes'] / MIB:>8.0f} {found['peak_cuda_bytes'] / MIB:>8.0f} {distance:>8}"
        )
    print("\nloss of each step")
    for key, found in figures.items():
        print(f"{key:<22} " + " ".join(f"{loss:.4f}" for loss in found["losses"]))
    found = ratios(figures)
    if found:
        print(
            f"\nBumbleCore: {found['times_the_faster_peer']:.2f} times the tokens/s of the faster peer "
            f"({found['faster_peer']}) in {found['share_of_its_memory']:.2f} of its memory; "
            f"{found['share_of_the_leaner_peers_memory']:.2f} of the leaner peer's ({found['leaner_peer']})"
        )


if __name__ == "__main__":
    try:
        main()
    except RunFailed as failure:
        sys.exit("\n".join(failure.args[0]))
