"""Feedback rows that the tests of the stage `kto` share."""

from __future__ import annotations

import torch
from format_rows import reply, user

from bumblecore_core import FeedbackSample, StageContext
from bumblecore_core.run.statistics import with_totals
from bumblecore_plugins.stages import KtoOptions
from bumblecore_plugins.stages.kto import FeedbackStage
from workbench import sentence


def stage_of(tokenizer, max_length=200, strict=False, **options):
    context = StageContext(tokenizer=tokenizer, max_length=max_length, strict=strict)
    return FeedbackStage(KtoOptions(**options), context)


def with_sums(stage, policy, *batches):
    """The batches as those of one optimizer step: each with the sums over all of them."""
    with torch.no_grad():
        found = [stage.statistics_step(policy=policy, batch=batch) for batch in batches]
    totals = {name: sum(float(sums[name]) for sums in found) for name in stage.statistics}
    return [with_totals(batch, totals) for batch in batches]


def row(prompt, completion, label):
    return FeedbackSample(prompt=(user(prompt),), completion=(reply(completion),), label=label)


SAMPLES = [
    row(sentence(1, 4), sentence(2, 7), True),
    row(sentence(2, 2), sentence(5, 3), False),
    row(sentence(2, 2), sentence(6, 1), True),
    row(sentence(3, 6), sentence(5, 3) + " rain", False),
    row(sentence(4, 3), sentence(7, 12), False),
]
SOURCES = [4, 0, 0, 2, 3]
"""Where each sample's other completion comes from; the second and third have the same prompt."""
