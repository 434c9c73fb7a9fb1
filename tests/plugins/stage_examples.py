"""Built-in stages by name, samples for them, and their examples as arrays."""

from __future__ import annotations

import numpy as np
from templates import SHAPES, tokenizer_for

from bumblecore_core import ChatSample, StageContext, TokenExample
from bumblecore_plugins.stages import bumble_stages

RECORDS = {record.name: record for record in bumble_stages()}
BY_NAME = {shape.name: shape for shape in SHAPES}


def context(shape="chatml", max_length=64, strict=False) -> StageContext:
    return StageContext(tokenizer=tokenizer_for(BY_NAME[shape]), max_length=max_length, strict=strict)


def build(name: str, ctx: StageContext, **options):
    record = RECORDS[name]
    return record.build(options=record.options(**options), context=ctx)


def chat(*replies: str) -> ChatSample:
    messages = []
    for number, reply in enumerate(replies):
        messages += [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": reply}]
    return ChatSample(messages=tuple(messages))


def arrays(example: TokenExample) -> dict[str, np.ndarray]:
    return {name: np.asarray(values, dtype=np.int32) for name, values in example.columns.items()}
