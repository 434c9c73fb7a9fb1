"""What made a loss or a gradient non-finite: the first of weights, reference, model, loss and gradient that is."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from bumblecore_core import StepOutput
from bumblecore_core.run.blame import Plugin, RunPlugins
from bumblecore_core.run.checked_loss import CheckedLoss
from bumblecore_core.run.not_finite import _cause, first_fact
from bumblecore_core.toolkit.policy import Head

NAN = math.nan
KINDS = {"stage": "stages", "loss": "losses", "optimizer": "optimizers", "scheduler": "schedulers", "engine": "engines"}
PLUGINS = RunPlugins(**{key: Plugin(kind, f"odd_{key}", "odd") for key, kind in KINDS.items()}, adapter=None)


class Engine:
    """Calls a loss on each batch as a stage would; `ranks`: what the sum over ranks adds."""

    device = torch.device("cpu")

    def __init__(self, module, *, others=0.0):
        self.module, self.others = module, others

    def model_state(self, *, wanted):
        return {name: p.detach() for name, p in self.module.model.named_parameters() if wanted(name)}

    def sum_over_ranks(self, values):
        return [value + self.others for value in values]

    def evaluate(self, *, batch):
        with torch.no_grad():
            return self.module.checked_loss(**batch.inputs)


def module_of(loss, weight=1.0):
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = weight
    return SimpleNamespace(model=model, loss=loss, checked_loss=CheckedLoss(loss, PLUGINS.loss, None))


def fact(loss, inputs, *, weight=1.0):
    module = module_of(loss, weight)
    good = SimpleNamespace(inputs={name: torch.ones_like(value) for name, value in inputs.items() if name != "head"})
    if "head" in inputs:
        good.inputs |= {"head": Head(weight=torch.ones(3, 2)), "targets": inputs["targets"]}
    batches = [good, SimpleNamespace(inputs=inputs)]
    for batch in batches:
        batch.to = lambda device, batch=batch: batch
    found = first_fact(Engine(module), module, batches)
    assert module.checked_loss.watch is None
    return found


def tokens(hidden=1.0, weight=1.0):
    return {
        "hidden": torch.full((3, 2), hidden),
        "head": Head(weight=torch.full((3, 2), weight)),
        "targets": torch.tensor([0, 1, 2]),
    }


def nll(*, hidden, head, targets):
    return StepOutput(loss_sum=cross_entropy(head.logits(hidden), targets, reduction="sum"), count=len(targets))


def root(*, hidden, head, targets):
    total = nll(hidden=hidden, head=head, targets=targets).loss_sum
    return StepOutput(loss_sum=total + (total * 0).sqrt(), count=3)


def difference(*, chosen, rejected, reference_chosen, reference_rejected):
    return StepOutput(loss_sum=(chosen - reference_chosen - rejected + reference_rejected).sum().float(), count=2)


def pairs(**changed):
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected")
    return {name: torch.tensor([changed.get(name, 1.0), 1.0], dtype=torch.float64) for name in names}


@pytest.mark.parametrize(
    ("loss", "inputs", "expected"),
    [
        (nll, tokens(), None),
        (nll, tokens(hidden=NAN), "inputs"),
        (nll, tokens(hidden=3e38, weight=3e38), "inputs"),  # the logits
        (lambda **inputs: StepOutput(loss_sum=nll(**inputs).loss_sum * NAN, count=3), tokens(), "loss"),
        (root, tokens(), "gradient"),
        (difference, pairs(), None),
        (difference, pairs(chosen=math.inf), "inputs"),
        (difference, pairs(reference_rejected=NAN), "reference"),
    ],
)
def test_the_first_that_is_not_finite(loss, inputs, expected):
    assert fact(loss, inputs) == expected


def test_weights_that_are_not_finite_come_first_and_what_another_rank_found_counts():
    assert fact(nll, tokens(hidden=NAN), weight=NAN) == "weights"
    module = module_of(nll)
    assert first_fact(Engine(module, others=1.0), module, []) == "weights"


@pytest.mark.parametrize(
    ("fact", "rate", "of_loss", "plugin", "rows", "words"),
    [
        ("weights", 1e-5, True, PLUGINS.optimizer, False, "Choose another optimizer"),
        ("weights", 1e30, True, PLUGINS.optimizer, False, "Lower optimizer.lr, which is 1e+30"),
        ("reference", 1e-5, True, None, True, "reference model"),
        ("inputs", 1e-5, True, None, True, "Lower optimizer.lr or look at these rows"),
        ("loss", 1e-5, True, PLUGINS.loss, False, "Choose another loss"),
        ("gradient", 1e-5, False, PLUGINS.loss, False, "Choose another loss"),
        (None, 1e-5, True, None, True, "Lower optimizer.lr or look at these rows"),
        (None, 1e-5, False, None, True, "Lower optimizer.lr or look at these rows"),
    ],
)
def test_rows_and_rate_are_mentioned_only_where_they_can_be_the_cause(fact, rate, of_loss, plugin, rows, words):
    cause = _cause(fact, PLUGINS, rate, of_loss)
    assert (cause.plugin, cause.rows) == (plugin, rows)
    assert words in cause.fix
    assert plugin is None or str(plugin) in cause.problem
    assert ("optimizer.lr" in cause.fix) == ("optimizer.lr" in words)
