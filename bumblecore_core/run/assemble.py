"""Assembling a run. This is the only place where build order is written.

`prepare` makes what needs no weights (tokenizer, stage, token shards, batch plan): `bumble plan` stops there.
`assemble` goes on to model, loss and the wrapped module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from bumblecore_core.config.resolved import ResolvedRun, Selected
from bumblecore_core.protocols import Adapter, Engine, EngineContext, Stage
from bumblecore_core.records import AttentionRecord
from bumblecore_core.registry import PluginSwitches, Registry
from bumblecore_core.run.attention import select_attention
from bumblecore_core.run.blame import blamed
from bumblecore_core.run.data.loader import collate
from bumblecore_core.run.data.plan import BatchPlan, MicroBatch, PlanOptions
from bumblecore_core.run.data.prepare import prepare_store, split_eval
from bumblecore_core.run.groups import parameter_groups
from bumblecore_core.run.model import build_model, check_positions, check_vocabulary, load_config
from bumblecore_core.run.module import TrainModule
from bumblecore_core.run.stage_factory import StageFactory
from bumblecore_core.run.weights import stored_dtype
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_core.toolkit.tokenizers import resolve_model_dir, tokenizer_fingerprint
from bumblecore_core.values import Batch

if TYPE_CHECKING:
    from bumblecore_core.run.data.store import TokenStore


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run needs before its weights. `rows`: indices in `store`; `warnings`: what to show beside the facts."""

    resolved: ResolvedRun
    model_dir: Path
    model_config: Any
    tokenizer: Any
    tokenizer_fingerprint: str
    stage: Stage
    store: TokenStore
    rows: np.ndarray
    plan: BatchPlan
    eval_store: TokenStore
    eval_plan: BatchPlan | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A run that is ready to train. `features`: (feature, what was decided) pairs."""

    model: Any
    adapter: Adapter | None
    module: TrainModule
    features: tuple[tuple[str, str], ...]


def build(selected: Selected[Any], **given: Any) -> Any:
    """What the chosen record builds; an exception in there names the plugin (`PluginError` BC060)."""
    with blamed(selected.record.kind, selected.name):
        return selected.record.build(options=selected.options, **given)


def build_engine(resolved: ResolvedRun) -> Engine:
    """The engine comes first: a device or dtype that is not there must be said before anything is read."""
    config = resolved.config
    context = EngineContext(
        dtype=config.model.dtype,
        master_weights=config.model.master_weights,
        float32_gradients=config.train.float32_gradients,
        max_grad_norm=config.train.max_grad_norm,
        gradient_accumulation_steps=config.train.gradient_accumulation_steps,
        micro_batch_size=config.train.micro_batch_size,
    )
    engine: Engine = build(resolved.engine, context=context)
    return engine


def prepare(
    resolved: ResolvedRun, registry: Registry, switches: PluginSwitches, *, world_size: int, progress: bool
) -> Prepared:
    """Tokenizer, stage, token shards and batch plan. Raises what is wrong with data, tokenizer, template or the model's
    config.json."""
    config = resolved.config
    model_dir = resolve_model_dir(config.model.path)
    model_config = load_config(model_dir, trust_remote_code=config.model.trust_remote_code)
    factory = StageFactory(
        stage_name=resolved.stage.record.name,
        options=resolved.stage.options,
        tokenizer_dir=config.model.tokenizer or str(model_dir),
        chat_template=config.model.chat_template,
        trust_remote_code=config.model.trust_remote_code,
        max_length=config.data.max_length,
        strict=config.data.strict,
        switches=switches,
    )
    tokenizer = factory.tokenizer()
    check_vocabulary(model_config, tokenizer, model_dir)
    stage = factory.stage(resolved.stage.record, tokenizer)
    fingerprint = tokenizer_fingerprint(tokenizer)
    shards = _Shards(resolved, registry, stage, factory, fingerprint, progress)
    store = shards.store(config.data.path, resolved.formats, "data.path")
    rows, eval_store, eval_rows = np.arange(len(store)), store, np.arange(0)
    if config.data.eval_path is not None:
        eval_store = shards.store(config.data.eval_path, resolved.eval_formats, "data.eval_path")
        eval_rows = np.arange(len(eval_store))
    elif config.data.eval_split is not None:
        rows, eval_rows = split_eval(len(store), config.data.eval_split, config.train.seed)
    longest = max(int(store.lengths.max()), int(eval_store.lengths.max()))
    return Prepared(
        resolved=resolved,
        model_dir=model_dir,
        model_config=model_config,
        tokenizer=tokenizer,
        tokenizer_fingerprint=fingerprint,
        stage=stage,
        store=store,
        rows=rows,
        plan=_plan(resolved, store, rows, world_size),
        eval_store=eval_store,
        eval_plan=_plan(resolved, eval_store, eval_rows, world_size, evaluation=True) if len(eval_rows) else None,
        warnings=check_positions(model_config, longest),
    )


def assemble(prepared: Prepared, registry: Registry, engine: Engine, checkpoint: Path | None = None) -> Assembled:
    """Model, adapter, policy, loss, optimizer and schedule, wrapped by the engine. `checkpoint`: take the weights from
    there, in the dtype in which the run first had them, so that buffers made beside them are the same too."""
    resolved, config = prepared.resolved, prepared.resolved.config
    implementation, attention = select_attention(
        attention_records(registry), config.model.attention, device=engine.device, dtype=engine.dtype
    )
    from_config = resolved.stage.record.model_from == "config"
    with engine.model_context():
        model = build_model(
            directory=checkpoint or prepared.model_dir,
            from_config=from_config and checkpoint is None,
            dtype=torch.float32 if from_config else stored_dtype(prepared.model_dir),
            attention=implementation,
            seed=config.train.seed,
            gradient_checkpointing=config.model.gradient_checkpointing,
            trust_remote_code=config.model.trust_remote_code,
        )
    adapter = None
    if resolved.adapter is not None:
        adapter = build(resolved.adapter)
        model = adapter.wrap(model=model)
    loss = build(resolved.loss)
    module = TrainModule(
        model=model,
        stage=prepared.stage,
        stage_name=resolved.stage.name,
        loss=loss,
        loss_name=resolved.loss.name,
    )
    engine.prepare(
        module=module,
        groups=parameter_groups(model),
        make_optimizer=lambda groups: build(resolved.optimizer, groups=groups),
        make_scheduler=lambda optimizer: build(
            resolved.scheduler, optimizer=optimizer, total_steps=prepared.plan.total_steps
        ),
    )
    single_document = config.train.micro_batch_size == 1 and not config.data.packing
    module.policy = make_policy(model, single_document=single_document)
    features = (
        ("adapter", resolved.adapter.name if resolved.adapter else "none (full fine-tuning)"),
        ("loss", resolved.loss.name),
        ("attention", "; ".join(attention)),
        *module.policy.features,
        ("gradient checkpointing", "on" if config.model.gradient_checkpointing else "off"),
        ("packing", "on" if config.data.packing else "off (still no padding: documents are concatenated)"),
        *engine.features(),
    )
    return Assembled(model=model, adapter=adapter, module=module, features=features)


def attention_records(registry: Registry) -> list[AttentionRecord]:
    """Every attention implementation that is installed."""
    return [cast(AttentionRecord, provided.record) for provided in registry.all("attentions")]


def evaluation_batches(prepared: Prepared, rank: int) -> Callable[[], Iterator[tuple[MicroBatch, Batch]]] | None:
    """A fresh pass over the evaluation rows of one rank at each call; None without evaluation data."""
    plan = prepared.eval_plan
    if plan is None:
        return None

    def batches() -> Iterator[tuple[MicroBatch, Batch]]:
        for window in plan.windows():
            for micro in window.micro_batches[rank]:
                yield micro, collate(prepared.eval_store, prepared.stage, micro.rows)

    return batches


@dataclass(frozen=True)
class _Shards:
    resolved: ResolvedRun
    registry: Registry
    stage: Stage
    factory: StageFactory
    tokenizer_fingerprint: str
    progress: bool

    def store(self, files: Any, formats: Any, field: str) -> TokenStore:
        data = self.resolved.config.data
        return prepare_store(
            files=files,
            formats=formats,
            registry=self.registry,
            stage=self.stage,
            stage_record=self.resolved.stage.record,
            stage_options=self.resolved.stage.options,
            make_stage=self.factory,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            data=data,
            progress=self.progress,
            field=field,
        )


def _plan(
    resolved: ResolvedRun, store: TokenStore, rows: np.ndarray, world_size: int, *, evaluation: bool = False
) -> BatchPlan:
    config = resolved.config
    options = PlanOptions(
        micro_batch_size=config.train.micro_batch_size,
        gradient_accumulation_steps=1 if evaluation else config.train.gradient_accumulation_steps,
        world_size=world_size,
        seed=config.train.seed,
        packing=config.data.packing,
        max_length=config.data.max_length,
        shuffle=not evaluation,
    )
    return BatchPlan(
        lengths=store.lengths,
        counts=store.counts,
        rows=rows,
        options=options,
        sources=store.sources,
        weights=[1.0] * len(store.files) if evaluation else store.weights,
        epochs=1.0 if evaluation else config.train.epochs,
        max_steps=None if evaluation else config.train.max_steps,
    )
