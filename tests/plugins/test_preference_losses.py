"""Each preference loss is its formula, pair by pair in plain float64 arithmetic; gradients, edges, figures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bumblecore_plugins.losses import bumble_losses

RECORDS = {record.name: record for record in bumble_losses() if record.loss_kind == "preference"}
PER_TOKEN = {"simpo", "orpo"}
NAMES = ("chosen", "rejected", "reference_chosen", "reference_rejected")


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def logistic(x):
    return math.exp(log_sigmoid(x))


def odds(log_p):
    return math.exp(log_p) / (1 - math.exp(log_p))


def dpo(a, b, _, *, beta, label_smoothing):
    return -(1 - label_smoothing) * log_sigmoid(beta * (a - b)) - label_smoothing * log_sigmoid(beta * (b - a))


def robust(a, b, lengths, *, beta, label_smoothing):
    right = dpo(a, b, lengths, beta=beta, label_smoothing=0)
    wrong = dpo(b, a, lengths, beta=beta, label_smoothing=0)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def exo(a, b, _, *, beta, label_smoothing):
    policy = [logistic(beta * (a - b)), logistic(beta * (b - a))]
    label = [1 - label_smoothing, label_smoothing]
    return sum(p * math.log(p / q) for p, q in zip(policy, label, strict=True))


TWINS = {
    "sigmoid": dpo,
    "hinge": lambda a, b, _, *, beta: max(0.0, 1 - beta * (a - b)),
    "ipo": lambda a, b, lengths, *, beta: (a / lengths[0] - b / lengths[1] - 1 / (2 * beta)) ** 2,
    "robust": robust,
    "exo_pair": exo,
    "apo_zero": lambda a, b, _, *, beta: 1 - logistic(beta * a) + logistic(beta * b),
    "simpo": lambda a, b, _, *, beta, gamma: -log_sigmoid(beta * a - beta * b - gamma),
    "orpo": lambda a, b, _, *, beta: -a + beta * math.log(1 + odds(b) / odds(a)),
}
"""Of a pair's scores (log-ratios, or log-probabilities per token where there is no reference) and its two lengths."""
CASES = [
    *((name, {}) for name in TWINS),
    ("sigmoid", {"beta": 0.7, "label_smoothing": 0.2}),
    ("hinge", {"beta": 0.02}),
    ("ipo", {"beta": 1.3}),
    ("robust", {"beta": 0.5, "label_smoothing": 0.4}),
    ("exo_pair", {"beta": 0.3, "label_smoothing": 0.25}),
    ("apo_zero", {"beta": 0.4}),
    ("simpo", {"beta": 2.5, "gamma": 0.0}),
    ("orpo", {"beta": 1.5}),
]


def built(name, **options):
    record = RECORDS[name]
    return record.build(options=record.options(**options))


def inputs(name, *, pairs=7, dtype=torch.float64, seed=0):
    """Log-probabilities between −3 and −0.01 per token, and a reference near them; leaves where the loss needs them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (2, pairs), generator=generator)
    means = -0.01 - 2.99 * torch.rand(2, pairs, generator=generator, dtype=torch.float64)
    moved = torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    found = dict(zip(NAMES, [*(means * lengths), *(means * lengths + 4 * moved)], strict=True))
    batch = {key: value.to(dtype) for key, value in found.items()}
    for key in NAMES[:2]:
        batch[key].requires_grad_()
    if not RECORDS[name].needs_reference:
        batch |= dict.fromkeys(NAMES[2:])
    return batch | {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}


def scores(name, batch):
    """(chosen, rejected, their lengths) of each pair."""
    lengths = list(zip(batch["chosen_lengths"].tolist(), batch["rejected_lengths"].tolist(), strict=True))
    pairs = zip(batch["chosen"].tolist(), batch["rejected"].tolist(), strict=True)
    if name in PER_TOKEN:
        return [(a / one, b / other, (one, other)) for (a, b), (one, other) in zip(pairs, lengths, strict=True)]
    reference = zip(batch["reference_chosen"].tolist(), batch["reference_rejected"].tolist(), strict=True)
    return [(a - c, b - d, both) for (a, b), (c, d), both in zip(pairs, reference, lengths, strict=True)]


def expected(name, batch, options):
    options = RECORDS[name].options(**options).model_dump()
    return [TWINS[name](*pair, **options) for pair in scores(name, batch)]


def of_scores(name, chosen, rejected, **options):
    """The loss of one pair of one token each, with these scores."""
    pair = {"chosen": chosen, "rejected": rejected, "chosen_lengths": 1, "rejected_lengths": 1}
    batch = {key: torch.tensor([value], dtype=torch.float64) for key, value in pair.items()}
    zero = torch.zeros(1, dtype=torch.float64) if RECORDS[name].needs_reference else None
    return built(name, **options)(**batch, reference_chosen=zero, reference_rejected=zero).loss_sum.item()


def test_every_preference_loss_has_a_twin_and_says_what_it_needs():
    assert set(RECORDS) == set(TWINS)
    assert {name for name, record in RECORDS.items() if not record.needs_reference} == PER_TOKEN


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_loss_is_its_formula(name, options):
    batch = inputs(name)
    out = built(name, **options)(**batch)
    assert out.loss_sum.item() == pytest.approx(sum(expected(name, batch, options)), rel=1e-12)
    assert out.count == 7


@pytest.mark.parametrize(("name", "options"), CASES)
def test_float32_comes_close(name, options):
    batch = inputs(name, dtype=torch.float32, pairs=40)
    out = built(name, **options)(**batch)
    assert out.loss_sum.dtype == torch.float32
    assert out.loss_sum.item() == pytest.approx(sum(expected(name, batch, options)), rel=2e-6)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_by_finite_differences(name, options):
    batch = inputs(name, pairs=5)

    def loss(chosen, rejected):
        return built(name, **options)(**batch | {"chosen": chosen, "rejected": rejected}).loss_sum

    assert torch.autograd.gradcheck(loss, (batch["chosen"], batch["rejected"]))


@pytest.mark.parametrize("name", TWINS)
def test_figures_are_means_over_pairs(name):
    batch = inputs(name)
    out = built(name, beta=0.3)(**batch)
    chosen, rejected, _ = zip(*scores(name, batch), strict=True)
    better, worse = [0.3 * value for value in chosen], [0.3 * value for value in rejected]
    logps = (chosen, rejected) if name in PER_TOKEN else (batch["chosen"].tolist(), batch["rejected"].tolist())
    want = {
        "rewards/chosen": better,
        "rewards/rejected": worse,
        "rewards/accuracies": [float(a > b) for a, b in zip(better, worse, strict=True)],
        "rewards/margins": [a - b for a, b in zip(better, worse, strict=True)],
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
    }
    assert set(out.metrics) == set(want)
    assert 0 < sum(want["rewards/accuracies"]) < 7
    for figure, values in want.items():
        metric = out.metrics[figure]
        assert (metric.weight, metric.reduce, metric.total.requires_grad) == (7.0, "mean", False)
        assert metric.total.item() == pytest.approx(sum(values), rel=1e-12), figure


@pytest.mark.parametrize("name", TWINS)
def test_no_pair_sums_to_zero_with_a_graph(name):
    batch = inputs(name, pairs=0, dtype=torch.float32)
    out = built(name)(**batch)
    out.loss_sum.backward()
    assert (out.loss_sum.item(), out.count, batch["chosen"].grad.shape) == (0.0, 0, (0,))
    assert {metric.weight for metric in out.metrics.values()} == {0.0}


@pytest.mark.parametrize("name", ["sigmoid", "robust"])
def test_where_policy_and_reference_agree_the_loss_is_log_2(name):
    batch = inputs(name, dtype=torch.float32)
    batch |= {"reference_chosen": batch["chosen"].detach(), "reference_rejected": batch["rejected"].detach()}
    out = built(name)(**batch)
    assert out.loss_sum.item() / 7 == pytest.approx(math.log(2), abs=1e-7)
    assert out.metrics["rewards/accuracies"].total.item() == 0  # equal rewards are no success


def test_what_the_other_losses_begin_at():
    start = {name: of_scores(name, 0.0, 0.0, beta=0.1) for name in ("hinge", "ipo", "apo_zero")}
    assert start == {"hinge": 1.0, "ipo": 25.0, "apo_zero": 1.0}
    assert of_scores("exo_pair", 0.0, 0.0, label_smoothing=0.25) == pytest.approx(math.log(2 / math.sqrt(3)))


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("margin", [3e4, -3e4])
def test_extreme_scores_have_finite_losses_and_gradients(name, margin):
    batch = inputs(name, pairs=1, dtype=torch.float32)
    values = (-1e-3, -1e-3 - abs(margin)) if margin > 0 else (-1e-3 - abs(margin), -1e-3)
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in values)
    out = built(name)(**batch | {"chosen": chosen, "rejected": rejected})
    gradients = torch.autograd.grad(out.loss_sum, [chosen, rejected])
    assert all(torch.isfinite(value).all() for value in (out.loss_sum, *gradients))


@pytest.mark.parametrize("log_p", [0.0, -1e-9, -1e-7, -1e-5, -0.5, -0.7, -20.0, -200.0])
@pytest.mark.parametrize("certain", ["chosen", "rejected"])
def test_orpo_holds_where_a_completion_is_certain_or_hopeless(log_p, certain):
    other = "rejected" if certain == "chosen" else "chosen"
    one = torch.ones(1, dtype=torch.int64)
    values = {certain: torch.tensor([log_p], requires_grad=True), other: torch.tensor([-0.7], requires_grad=True)}
    fixed = {"reference_chosen": None, "reference_rejected": None, "chosen_lengths": one, "rejected_lengths": one}
    out = built("orpo", beta=1.0)(**values, **fixed)
    gradients = torch.autograd.grad(out.loss_sum, list(values.values()))
    assert all(torch.isfinite(value).all() for value in (out.loss_sum, *gradients))
    p = -min(log_p, -torch.finfo(torch.float32).eps)
    log_odds = {certain: -p - math.log(-math.expm1(-p)), other: -0.7 - math.log(-math.expm1(-0.7))}
    want = -values["chosen"].item() - log_sigmoid(log_odds["chosen"] - log_odds["rejected"])
    assert out.loss_sum.item() == pytest.approx(want, rel=1e-6, abs=1e-6)


SCORE = st.floats(-60, 60)
LOG_P = st.floats(-60, -1e-3)
SMOOTHING = st.floats(0.01, 0.45)


@given(name=st.sampled_from(["sigmoid", "hinge", "robust", "apo_zero"]), a=SCORE, b=SCORE, rejected=SCORE)
def test_a_larger_margin_never_costs_more(name, a, b, rejected):
    low, high = sorted((a, b))
    assert of_scores(name, high, rejected) <= of_scores(name, low, rejected) + 1e-12
    assert of_scores(name, rejected, low) <= of_scores(name, rejected, high) + 1e-12


@given(name=st.sampled_from(["simpo", "orpo"]), a=LOG_P, b=LOG_P, rejected=LOG_P)
def test_without_a_reference_a_larger_margin_never_costs_more(name, a, b, rejected):
    low, high = sorted((a, b))
    assert of_scores(name, high, rejected) <= of_scores(name, low, rejected) + 1e-12
    assert of_scores(name, rejected, low) <= of_scores(name, rejected, high) + 1e-12


@given(a=SCORE, b=SCORE, smoothing=SMOOTHING)
def test_the_divergence_of_exo_is_least_at_the_labels_odds(a, b, smoothing):
    best = math.log((1 - smoothing) / smoothing)
    options = {"beta": 1.0, "label_smoothing": smoothing}
    assert of_scores("exo_pair", best, 0.0, **options) == pytest.approx(0, abs=1e-12)
    near, far = sorted((a, b), key=abs)
    for sign in (1, -1):
        nearer = of_scores("exo_pair", best + sign * abs(near), 0.0, **options)
        assert nearer <= of_scores("exo_pair", best + sign * abs(far), 0.0, **options) + 1e-9


@given(a=SCORE, b=SCORE, smoothing=SMOOTHING)
def test_smoothed_labels_swap_with_the_completions(a, b, smoothing):
    """ε on a pair is 1 − ε on the pair turned around; unsmoothed losses of both orders mix to it, or are made of it."""
    plain, turned = of_scores("sigmoid", a, b), of_scores("sigmoid", b, a)
    mixed, robust = ((1 - smoothing) * plain + smoothing * turned), of_scores("robust", a, b, label_smoothing=smoothing)
    assert of_scores("sigmoid", a, b, label_smoothing=smoothing) == pytest.approx(mixed, rel=1e-9, abs=1e-12)
    flipped = of_scores("robust", b, a, label_smoothing=smoothing)
    assert (1 - smoothing) * robust + smoothing * flipped == pytest.approx(plain, rel=1e-9, abs=1e-9)
    both = of_scores("exo_pair", a, b, label_smoothing=smoothing) - of_scores(
        "exo_pair", b, a, label_smoothing=smoothing
    )
    tilt = (logistic(0.1 * (a - b)) - logistic(0.1 * (b - a))) * math.log(smoothing / (1 - smoothing))
    assert both == pytest.approx(tilt, rel=1e-9, abs=1e-9)


@settings(max_examples=40)
@given(name=st.sampled_from(sorted(TWINS)), pairs=st.integers(0, 9), cut=st.integers(0, 9), seed=st.integers(0, 99))
def test_losses_and_figures_add_up_over_pairs(name, pairs, cut, seed):
    batch = inputs(name, pairs=pairs, seed=seed)
    parts = [
        built(name)(**{key: value if value is None else value[part] for key, value in batch.items()})
        for part in (slice(0, cut), slice(cut, None))
    ]
    whole = built(name)(**batch)
    assert sum(part.count for part in parts) == whole.count == pairs
    assert sum(part.loss_sum.item() for part in parts) == pytest.approx(whole.loss_sum.item(), rel=1e-12)
    for figure, metric in whole.metrics.items():
        total = sum(part.metrics[figure].total.item() for part in parts)
        assert total == pytest.approx(metric.total.item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, {"beta": 0.0}) for name in TWINS),
        *((name, {"betta": 0.1}) for name in TWINS),
        ("sigmoid", {"label_smoothing": 0.5}),
        ("sigmoid", {"label_smoothing": -0.1}),
        *((name, {"label_smoothing": value}) for name in ("robust", "exo_pair") for value in (0.0, 0.5)),
        *((name, {"label_smoothing": 0.1}) for name in ("hinge", "ipo", "apo_zero", "simpo", "orpo")),
        ("simpo", {"gamma": -1.0}),
        ("orpo", {"gamma": 1.0}),
    ],
)
def test_wrong_options_are_refused(name, wrong):
    with pytest.raises(ValidationError):
        RECORDS[name].options(**wrong)
