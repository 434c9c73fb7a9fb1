"""Encodes texts so that only their last part is trained."""

from dataclasses import dataclass

from bumblecore_core.toolkit.causal import causal_example


@dataclass(frozen=True)
class Ending:
    share: float

    def __call__(self, samples, context):
        rows = context.tokenizer([sample.text for sample in samples], add_special_tokens=False)["input_ids"]
        return [self._example(row[: context.max_length]) for row in rows]

    def _example(self, ids):
        start = len(ids) - max(1, round(len(ids) * self.share))
        return causal_example(ids, [(start, len(ids))])
