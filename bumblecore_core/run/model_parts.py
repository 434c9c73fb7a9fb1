"""What a run saves of its model."""

from __future__ import annotations

from bumblecore_core.run.assemble import Assembled, Prepared
from bumblecore_core.run.checkpoint.writing import ModelParts
from bumblecore_core.toolkit.processor_files import processor_files


def model_parts(prepared: Prepared, assembled: Assembled) -> ModelParts:
    """Model or adapter, tokenizer, and the processor files of the directory that the run starts from."""
    return ModelParts(
        model=assembled.model,
        tokenizer=prepared.tokenizer,
        adapter=assembled.adapter,
        max_shard_size=prepared.resolved.config.checkpoint.max_shard_size,
        unchanged=assembled.unchanged,
        processor_files=processor_files(prepared.model_dir),
    )
