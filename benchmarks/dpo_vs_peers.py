"""Direct preference optimisation by BumbleCore and TRL's DPOTrainer: speed, memory and losses.

    pip install 'bumblecore[bench]'
    python benchmarks/dpo_vs_peers.py --preset large-vocab --dtype bf16

Both start from the same saved weights and train on the same pairs, in the same order, with the same optimizer steps,
each run in a fresh process, in alternation: once in full, once with LoRA. TRL runs in the fastest of its settings,
which a short pilot finds; BumbleCore is `bumble run` with its defaults, and beside bf16 weights with its own like that.
The first step of every run warms up and is not timed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from pairs import (
    FRAMEWORKS,
    METHODS,
    like_of,
    margin_distance,
    own_variants,
    pairs_per_second,
    summarize,
    trl_variants,
)
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
from setting import PILOT_STEPS, SET, loss_distance, ratios

REFERENCE_SECONDS = re.compile(r"computed in ([\d.]+) s")
Candidate = tuple[str, str]
"""(framework, variant)"""


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=16, help="pairs to train on, once each")
    parser.add_argument("--batch-size", type=int, default=4, help="pairs in an optimizer step")
    parser.add_argument("--data", type=Path, help="preference rows in ShareGPT form; made up when not given")
    parser.add_argument("--methods", default=",".join(METHODS), help="what to train: full, lora, or both")
    parser.add_argument("--variants", default="fastest", help="TRL's: fastest, by a pilot; all; or names, with commas")
    add_common_options(parser)
    args = parser.parse_args(given)
    args.methods = args.methods.split(",")
    known = {"--methods": (args.methods, METHODS)}
    if args.variants not in ("fastest", "all"):
        known["--variants"] = (args.variants.split(","), trl_variants(args.dtype))
    for option, (names, offered) in known.items():
        unknown = [name for name in names if name not in offered]
        if unknown:
            parser.error(f"{option}: no {', '.join(unknown)} among {', '.join(offered)}")
    if args.pairs <= args.batch_size:
        parser.error("--pairs: more than one step is needed, for the first is not timed")
    return args


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(prefix="dpo-vs-peers-") as place:
        bench = Bench(args, Path(place))
        bench.prepare()
        print(bench.title(), flush=True)
        figures = {method: bench.figures(method, bench.measure(method)) for method in args.methods}
    found = {method: pair_ratios(method, figures[method]) for method in args.methods}
    for method in args.methods:
        print_table(method, figures[method], found[method])
    if args.json:
        facts = {key: bench.setting[key] for key in TOLD}
        all_found = {**facts, **bench.facts, "machine": machine(), "methods": figures, "ratios": found}
        args.json.write_text(json.dumps(all_found, indent=1) + "\n")


class Bench:
    """One comparison in one directory."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args, self.directory = args, directory
        self.facts: dict[str, Any] = {}
        self.processes, self.setting = set_up(args, directory, rows=args.pairs)

    def prepare(self) -> None:
        """Weights, tokenizer and pairs."""
        self.processes.run_part("dpo_prepare.py", str(self.directory / "setting.json"))
        self.facts = json.loads((self.directory / "facts.json").read_text())

    def title(self) -> str:
        setting, facts = self.setting, self.facts
        return (
            f"{setting['preset']}: {facts['parameters'] / 1e6:.1f} M parameters "
            f"({facts['adapter_parameters'] / 1e6:.2f} M with LoRA), vocabulary {facts['model']['vocab_size']}; "
            f"{setting['rows']} pairs, {facts['tokens_of_pairs']} tokens with each prompt once "
            f"({facts['tokens_of_completions']} in completions), {len(facts['step_pairs'])} steps of "
            f"{setting['batch_size']} pairs; {setting['dtype']}, {'GPU' if setting['on_gpu'] else 'CPU'}, "
            f"{setting['threads']} threads"
        )

    def measure(self, method: str) -> dict[str, list[dict[str, Any]]]:
        """Runs of each candidate, in alternation, by the names that figures and tables have for them."""
        candidates, told = self.candidates(method), partial(self._told, method)
        return in_turn(candidates, self.args.rounds, partial(self.run, method), told)

    def candidates(self, method: str) -> list[Candidate]:
        """TRL's variants to measure, and before them each of BumbleCore's that is like one of these."""
        dtype, asked = self.args.dtype, self.args.variants
        names = trl_variants(dtype)
        if asked == "fastest":
            names = [self._fastest(method, names)]
        elif asked != "all":
            names = [name for name in names if name in asked.split(",")]
        wanted = set(map(like_of(method), names))
        own = [("bumble", name) for name in own_variants(method, dtype) if name in wanted]
        return own + [("trl", name) for name in names]

    def figures(self, method: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        """With TRL's distance from BumbleCore's losses and margins."""
        figures = {key: summarize(found, self.facts["step_pairs"]) for key, found in runs.items()}
        own = {found["variant"]: found for key, found in figures.items() if key.split(" ")[0] == "bumble"}
        for key, found in figures.items():
            if key.split(" ")[0] == "trl":
                reference = own[like_of(method)(found["variant"])]
                found["loss_distance"] = loss_distance(found["losses"], reference["losses"])
                found["margin_distance"] = margin_distance(found["margins"], reference["margins"])
        return figures

    def run(self, method: str, framework: str, variant: str, steps: int = 0) -> dict[str, Any]:
        """Seconds, loss and margin of each step, seconds of the reference's pass, and the process's peaks of memory."""
        if framework == "bumble":
            return self._run_bumble(method, variant)
        return peers_run(self.processes, "dpo_worker.py", method, variant, str(steps))

    def _run_bumble(self, method: str, variant: str) -> dict[str, Any]:
        # What an earlier run kept of its reference would save this one the pass.
        shutil.rmtree(self.directory / "cache" / "reference", ignore_errors=True)
        given = {"step_tokens": self.facts["step_tokens"], "on_gpu": self.setting["on_gpu"]}
        run, steps = bumble_run(self.processes, f"{method}.yaml", variant, SET[variant], **given)
        reference = REFERENCE_SECONDS.search(self.processes.log.read_text(errors="replace"))
        if reference is None:
            raise SystemExit("bumble run does not say what its reference's pass took")
        margins = [step["rewards/margins"] for step in steps]
        return {**run, "margins": margins, "reference_seconds": float(reference[1])}

    def _fastest(self, method: str, names: list[str]) -> str:
        """The variant with the most pairs a second over a few steps."""
        steps = min(PILOT_STEPS, len(self.facts["step_pairs"]))
        told = partial(self._told, method)
        return fastest("trl", names, lambda *candidate: self.run(method, *candidate, steps), self._speed, told)

    def _speed(self, run: dict[str, Any]) -> float:
        return pairs_per_second(self.facts["step_pairs"][: len(run["seconds"])], run["seconds"])

    def _told(self, method: str, what: str, run: dict[str, Any]) -> None:
        reference, memory = run["reference_seconds"], run["peak_rss_bytes"] / MIB
        speed = f"{self._speed(run):.3f} pairs/s"
        print(f"{method}, {what}: {speed}, reference {reference:.1f} s, {memory:.0f} MiB", flush=True)


def pair_ratios(method: str, figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`setting.ratios` by steps' pairs/s, with that of whole runs beside the same setting."""
    found = ratios(figures, speed="pairs_per_second", like=like_of(method))
    whole = ratios(figures, speed="whole_run_pairs_per_second", like=like_of(method))
    assert found is not None
    assert whole is not None
    return {**found, "whole_run": {key: whole[key] for key in ("faster_peer", "times_the_faster_peer")}}


def print_table(method: str, figures: dict[str, dict[str, Any]], found: dict[str, Any]) -> None:
    """One line per candidate, the losses and margins, and the ratios."""
    names = ("pairs/s", "step s", "ref. s", "whole run", "RSS MiB", "CUDA MiB", "loss Δ", "margin Δ")
    print(f"\n{method:<16} {'setting':<24} " + " ".join(f"{name:>9}" for name in names))
    for key, one in figures.items():
        distances = [f"{one[name]:.1e}" if name in one else "" for name in ("loss_distance", "margin_distance")]
        print(
            f"{FRAMEWORKS[key.split(' ')[0]]:<16} {one['variant']:<24} {one['pairs_per_second']:>9.3f} "
            f"{one['step_seconds']:>9.2f} {one['reference_seconds']:>9.2f} {one['whole_run_pairs_per_second']:>9.3f} "
            f"{one['peak_rss_bytes'] / MIB:>9.0f} {one['peak_cuda_bytes'] / MIB:>9.0f} "
            + " ".join(f"{distance:>9}" for distance in distances)
        )
    for name in ("losses", "margins"):
        print(f"{name} of each step")
        for key, one in figures.items():
            print(f"  {key:<30} " + " ".join(f"{value:.6f}" for value in one[name]))
    whole = found["whole_run"]
    print(
        f"BumbleCore: {found['times_the_faster_peer']:.2f} times the pairs/s of {found['faster_peer']} in "
        f"{found['share_of_its_memory']:.2f} of its memory ({found['share_of_the_leaner_peers_memory']:.2f} of the "
        f"memory of {found['leaner_peer']}); {whole['times_the_faster_peer']:.2f} times over whole runs "
        f"({whole['faster_peer']})"
    )


if __name__ == "__main__":
    try:
        main()
    except RunFailed as failure:
        sys.exit("\n".join(failure.args[0]))
