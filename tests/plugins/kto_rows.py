"""Feedback rows that the tests of the stage `kto` share."""

from __future__ import annotations

from format_rows import reply, user

from bumblecore_core import FeedbackSample, StageContext
from bumblecore_plugins.stages import KtoOptions
from bumblecore_plugins.stages.kto import FeedbackStage
from workbench import sentence


def stage_of(tokenizer, max_length=200, strict=False, **options):
    context = StageContext(tokenizer=tokenizer, max_length=max_length, strict=strict)
    return FeedbackStage(KtoOptions(**options), context)


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
