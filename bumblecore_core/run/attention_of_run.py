"""The attention that a prepared run's models use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bumblecore_core.protocols import Engine
from bumblecore_core.registry import Registry
from bumblecore_core.run.attention_choice import AttentionChoice, choose_attention
from bumblecore_core.run.attention_proof import Workload
from bumblecore_core.run.build import attention_records
from bumblecore_core.run.data.of_run import may_share_prefixes
from bumblecore_core.toolkit.miniature import RunSizes

if TYPE_CHECKING:
    from bumblecore_core.run.assemble import Prepared


def chosen_attention(
    prepared: Prepared, registry: Registry, engine: Engine, *, model_config: Any = None
) -> AttentionChoice:
    """What `model.attention` stands for on this device, for the run's model or for another one of `model_config`.
    Raises as `attention_choice.choose_attention` does."""
    model = prepared.resolved.config.model
    workload = Workload(
        config=prepared.model_config if model_config is None else model_config,
        trust_remote_code=model.trust_remote_code,
        sizes=run_sizes(prepared),
        several_documents=not single_document(prepared),
        shares_prefixes=shares_prefixes(prepared),
    )
    records = attention_records(registry)
    return choose_attention(records, model.attention, workload, device=engine.device, dtype=engine.dtype)


def shares_prefixes(prepared: Prepared) -> bool:
    """Whether documents of a micro-batch may share a prefix."""
    return may_share_prefixes(prepared.stage, prepared.store, prepared.eval_store)


def single_document(prepared: Prepared) -> bool:
    """Whether every micro-batch holds one document."""
    config = prepared.resolved.config
    return config.train.micro_batch_size == 1 and not config.data.packing and not shares_prefixes(prepared)


def run_sizes(prepared: Prepared) -> RunSizes:
    """Upper bounds of the lengths that the run reaches, evaluation included."""
    config, stores = prepared.resolved.config, (prepared.store, prepared.eval_store)
    row = max(int(store.lengths.max()) for store in stores)
    if config.data.packing:
        row = max(row, config.data.max_length)
    return RunSizes(
        document=max(store.longest_sequence() for store in stores), batch=row * config.train.micro_batch_size
    )
