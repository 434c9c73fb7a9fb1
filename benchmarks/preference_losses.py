"""BumbleCore's preference losses beside TRL's: the same log-probabilities through both, pair by pair.

    pip install 'bumblecore[bench]'
    python benchmarks/preference_losses.py

TRL computes its losses in the middle of long methods. They run unchanged here, on trainers that were never initialised,
with a stand-in for the model that returns the made-up log-probabilities: `DPOTrainer._compute_loss`,
`CPOTrainer.get_batch_loss_metrics` (SimPO) and `ORPOTrainer.get_batch_loss_metrics`. Compared are each pair's loss, its
gradients with respect to the log-probabilities, and the logged figures of all pairs together. Where TRL's definitions
differ from the papers' or from BumbleCore's, `NOTES` says so, and it is printed too. Exits with 1 where a difference is
larger than --tolerance (relative, but absolute below 1, and below 0.001 for gradients).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

NOTES = (
    "sigmoid: TRL's DPOTrainer does not read label_smoothing in this loss. Conservative DPO is therefore compared with",
    "  CPOTrainer's sigmoid loss, given log-ratios.",
    "ipo: the paper has sums over tokens, TRL means over tokens. We follow TRL.",
    "apo_zero: the paper's loss plus 1, in TRL and here.",
    "simpo: the paper's formula in both. TRL's default margin is 0.5, ours 1.0.",
    "orpo: the odds ratio is the paper's in both. The supervised term is the paper's here: of the completion given",
    "  the prompt, its mean over tokens, pair by pair. TRL's is over the prompt too, a mean over a batch's tokens.",
    "  They agree where the prompt is one token and the batch one pair, as in the comparison. The last line has TRL's",
    "  value for a batch with longer prompts; it is not expected to agree.",
    "simpo, orpo: rewards/* and logps/* are of log-probabilities per token, in TRL and here.",
)
CASES: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("sigmoid", "dpo", {"beta": 0.1}),
    ("sigmoid", "cpo_ratios", {"beta": 0.1, "label_smoothing": 0.2}),
    ("hinge", "dpo", {"beta": 0.1}),
    ("ipo", "dpo", {"beta": 0.1}),
    ("robust", "dpo", {"beta": 0.1, "label_smoothing": 0.2}),
    ("exo_pair", "dpo", {"beta": 0.1, "label_smoothing": 1e-3}),
    ("apo_zero", "dpo", {"beta": 0.1}),
    ("simpo", "cpo", {"beta": 2.0, "gamma": 1.0}),
    ("orpo", "orpo", {"beta": 0.1}),
)
"""(loss, which of TRL's trainers, options)."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--longest", type=int, default=200, help="tokens of the longest completion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    return parser.parse_args()


def make_pairs(args: argparse.Namespace) -> dict[str, Any]:
    """float32 log-probabilities of completions with −3 to −0.01 a token, and a reference that lies near them."""
    import torch

    generator = torch.Generator().manual_seed(args.seed)
    lengths = torch.randint(1, args.longest + 1, (2, args.pairs), generator=generator)
    totals = lengths * (-0.01 - 2.99 * torch.rand(2, args.pairs, generator=generator))
    reference = totals + 5 * torch.randn(2, args.pairs, generator=generator)
    return {
        "chosen": totals[0],
        "rejected": totals[1],
        "reference_chosen": reference[0],
        "reference_rejected": reference[1],
        "chosen_lengths": lengths[0],
        "rejected_lengths": lengths[1],
    }


def bare(trainer: type, **attributes: Any) -> Any:
    """An instance whose `__init__` never ran, on one process."""
    import torch

    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda value: value, gather_for_metrics=lambda value: value
    )
    made = object.__new__(trainer)
    shared = {"accelerator": accelerator, "aux_loss_enabled": False, "is_encoder_decoder": False}
    for name, value in (shared | attributes).items():
        setattr(made, name, value)
    return made


def rows(pairs: dict[str, Any], prompt: int) -> tuple[Any, Any, Any]:
    """Of chosen, then rejected rows: lengths (2P,), masks (2P, T) of the completion and of what is no padding."""
    import torch

    lengths = torch.cat([pairs["chosen_lengths"], pairs["rejected_lengths"]])
    places = torch.arange(prompt + int(lengths.max()))
    inside = places < prompt + lengths[:, None]
    return lengths, inside & (places >= prompt), inside


def dpo(name: str, pairs: dict[str, Any], options: dict[str, float], _: int) -> tuple[Any, dict[str, float]]:
    """DPOTrainer: a completion's whole log-probability stands at its first token."""
    import torch
    from trl import DPOTrainer

    _, completion, inside = rows(pairs, 1)
    totals = torch.cat([pairs["chosen"], pairs["rejected"]])
    log_probs = torch.nn.functional.pad(totals[:, None], (0, completion.shape[1] - 2))
    nothing = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    trainer = bare(
        DPOTrainer,
        model=SimpleNamespace(training=True),
        loss_types=[name],
        loss_weights=[1.0],
        beta=options["beta"],
        label_smoothing=options.get("label_smoothing", 0.0),
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        use_weighting=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": inside.long(),
        "attention_mask": inside.long(),
        "completion_mask": completion.long(),
        "ref_chosen_logps": pairs["reference_chosen"],
        "ref_rejected_logps": pairs["reference_rejected"],
    }
    loss = trainer._compute_loss(lambda **_: outputs, inputs, False)
    return loss, {figure: values[-1] for figure, values in trainer._metrics["train"].items()}


def cpo_ratios(name: str, pairs: dict[str, Any], options: dict[str, float], _: int) -> tuple[Any, dict[str, float]]:
    """CPOTrainer's formula alone, given log-ratios in the place of log-probabilities."""
    from trl.experimental.cpo import CPOTrainer

    trainer = bare(CPOTrainer, loss_type=name, alpha=0.0, **options)
    ratios = [pairs[side] - pairs[f"reference_{side}"] for side in ("chosen", "rejected")]
    losses, chosen, rejected = trainer.cpo_loss(*ratios)
    return losses.mean(), {"rewards/chosen": chosen.mean().item(), "rewards/rejected": rejected.mean().item()}


def cpo(_: str, pairs: dict[str, Any], options: dict[str, float], prompt: int) -> tuple[Any, dict[str, float]]:
    """CPOTrainer with SimPO's loss."""
    from trl.experimental.cpo import CPOTrainer

    settings = {"beta": options["beta"], "simpo_gamma": options["gamma"], "label_smoothing": 0.0}
    trainer = bare(CPOTrainer, loss_type="simpo", alpha=0.0, cpo_alpha=0.0, pad_token_id=0, **settings)
    return from_logits(trainer, pairs, prompt)


def orpo(_: str, pairs: dict[str, Any], options: dict[str, float], prompt: int) -> tuple[Any, dict[str, float]]:
    """ORPOTrainer."""
    from trl.experimental.orpo import ORPOTrainer

    return from_logits(bare(ORPOTrainer, padding_value=0, beta=options["beta"]), pairs, prompt)


def from_logits(trainer: Any, pairs: dict[str, Any], prompt: int) -> tuple[Any, dict[str, float]]:
    """A vocabulary of two: token 0, which completions and prompts consist of, has its completion's mean log-probability
    at every position (the prompt's tokens too, so that they cost as much as the completion's)."""
    import torch

    lengths, completion, inside = rows(pairs, prompt)
    means = torch.cat([pairs["chosen"], pairs["rejected"]]) / lengths
    logits = torch.stack([means, torch.log(-torch.expm1(means))], dim=-1)[:, None].expand(-1, completion.shape[1], -1)
    count = len(lengths) // 2
    batch = {}
    for side, kept in (("chosen", slice(0, count)), ("rejected", slice(count, None))):
        batch[f"{side}_input_ids"] = torch.zeros_like(inside[kept], dtype=torch.long)
        batch[f"{side}_attention_mask"] = inside[kept].long()
        batch[f"{side}_labels"] = torch.where(completion[kept], 0, -100)
    loss, figures = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), batch)
    return loss, figures


TRAINERS = {"dpo": dpo, "cpo_ratios": cpo_ratios, "cpo": cpo, "orpo": orpo}


def bumble(name: str, pairs: dict[str, Any], options: dict[str, float]) -> tuple[Any, dict[str, float]]:
    """Mean loss and figures, as a run would report them."""
    from bumblecore_plugins.losses import bumble_losses

    record = {record.name: record for record in bumble_losses()}[name]
    given = pairs if record.needs_reference else pairs | {"reference_chosen": None, "reference_rejected": None}
    out = record.build(options=record.options(**options))(**given)
    return out.loss_sum / out.count, {
        figure: float(metric.total) / float(metric.weight) for figure, metric in out.metrics.items()
    }


def of_one(pairs: dict[str, Any], at: int) -> tuple[dict[str, Any], list[Any]]:
    """Pair `at` alone, and its two log-probabilities as leaves."""
    one = {name: values[at : at + 1].clone() for name, values in pairs.items()}
    leaves = [one[side].requires_grad_() for side in ("chosen", "rejected")]
    return one, leaves


def distance(ours: float, theirs: float, *, floor: float = 1.0) -> float:
    """Relative, to numbers of at least `floor`."""
    if math.isnan(ours) or math.isnan(theirs):
        return math.inf
    return abs(ours - theirs) / max(floor, abs(theirs))


def compare(name: str, trainer: str, options: dict[str, float], pairs: dict[str, Any]) -> dict[str, float]:
    """Mean losses of both, and the largest differences of losses, of gradients and of figures."""
    import torch

    sums, losses, gradients = [0.0, 0.0], [0.0], [0.0]
    for at in range(len(pairs["chosen"])):
        found = []
        for run in (lambda one: bumble(name, one, options), lambda one: TRAINERS[trainer](name, one, options, 1)):
            one, leaves = of_one(pairs, at)
            loss, _ = run(one)
            found.append((loss.item(), [slope.item() for slope in torch.autograd.grad(loss, leaves)]))
        (ours, slopes), (theirs, other_slopes) = found
        sums = [sums[0] + ours, sums[1] + theirs]
        losses.append(distance(ours, theirs))
        gradients += [distance(a, b, floor=1e-3) for a, b in zip(slopes, other_slopes, strict=True)]
    _, figures = bumble(name, pairs, options)
    _, other_figures = TRAINERS[trainer](name, pairs, options, 1)
    shared = figures.keys() & other_figures.keys()
    return {
        "bumble": sums[0] / len(pairs["chosen"]),
        "trl": sums[1] / len(pairs["chosen"]),
        "loss": max(losses),
        "gradient": max(gradients),
        "figures": max(distance(figures[figure], other_figures[figure]) for figure in shared),
    }


def main() -> int:
    args = parse()
    import trl

    pairs = make_pairs(args)
    print(f"TRL {trl.__version__}, {args.pairs} pairs, completions of 1 to {args.longest} tokens, float32\n")
    print(f"{'loss':<46} {'BumbleCore':>11} {'TRL':>11}  largest difference: loss  gradient   figures")
    far = []
    for name, trainer, options in CASES:
        found = compare(name, trainer, options, pairs)
        title = f"{name} ({', '.join(f'{option}={value:g}' for option, value in options.items())})"
        numbers = f"{found['bumble']:>11.7f} {found['trl']:>11.7f}"
        differences = {part: found[part] for part in ("loss", "gradient", "figures")}
        print(f"{title:<46} {numbers}  {'':<14}" + " ".join(f"{value:>9.1e}" for value in differences.values()))
        far += [f"{title}: {part}" for part, value in differences.items() if not value <= args.tolerance]
    ours, theirs = bumble("orpo", pairs, {"beta": 0.1})[0], orpo("orpo", pairs, {"beta": 0.1}, 10)[0]
    print(f"{'orpo, as TRL batches (prompts of 10 tokens)':<46} {ours.item():>11.7f} {theirs.item():>11.7f}\n")
    print("\n".join(NOTES))
    if far:
        print("\nfurther apart than allowed: " + "; ".join(far))
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
