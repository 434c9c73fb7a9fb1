"""Assembling a run. This is the only place where build order is written.

`prepare` makes what needs no weights (tokenizer, stage, token shards, batch plan): `bumble plan` stops there.
`assemble` goes on to model, loss and the wrapped module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.protocols import Adapter, Engine, Stage
from bumblecore_core.registry import PluginSwitches, Registry
from bumblecore_core.run.adapt import adapted, described, lr_scales, require_trained_base, used_outside
from bumblecore_core.run.agree import on_all_ranks
from bumblecore_core.run.attention_of_run import chosen_attention, shares_prefixes, single_document
from bumblecore_core.run.attention_proof import examine
from bumblecore_core.run.blame import Plugin, breach
from bumblecore_core.run.build import build, build_optimizer, build_scheduler, try_schedule
from bumblecore_core.run.data.of_run import Shards, evaluation_warnings, plan_of, require_rows
from bumblecore_core.run.data.plan import BatchPlan
from bumblecore_core.run.data.split import split_eval
from bumblecore_core.run.document_passes import document_passes
from bumblecore_core.run.groups import parameter_groups
from bumblecore_core.run.guarded import guarded_stage
from bumblecore_core.run.memory import Placement, placement_of
from bumblecore_core.run.model import build_model, check_positions, load_config
from bumblecore_core.run.module import TrainModule
from bumblecore_core.run.named_files import require_named_files
from bumblecore_core.run.profiling import PluginTimes, timed
from bumblecore_core.run.router_loss import require_routers, router_training
from bumblecore_core.run.stage_factory import StageFactory, trained_stop_ids
from bumblecore_core.run.template_date import template_date
from bumblecore_core.run.vocabulary import Vocabulary, extended_vocabulary
from bumblecore_core.run.weights import stored_dtype
from bumblecore_core.toolkit.adapters import tokenizer_source
from bumblecore_core.toolkit.generation import add_stop_ids
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_core.toolkit.tokenizers import resolve_model_dir, tokenizer_fingerprint
from bumblecore_core.toolkit.vision_language import tower_features, unchanged_weights
from bumblecore_core.values import ParameterGroup

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
    vocabulary: Vocabulary
    template_date: str | None
    stage: Stage
    store: TokenStore
    rows: np.ndarray
    plan: BatchPlan
    eval_store: TokenStore
    eval_plan: BatchPlan | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A run that is ready to train. `features`: (feature, what was decided) pairs; `warnings`: what to show beside;
    `placement`: where the engine puts what training keeps; `unchanged`: weights to save as they were loaded, by name
    (rank 0 holds their values)."""

    model: Any
    adapter: Adapter | None
    module: TrainModule
    placement: Placement
    unchanged: Mapping[str, torch.Tensor]
    features: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()


def prepare(
    resolved: ResolvedRun,
    registry: Registry,
    switches: PluginSwitches,
    *,
    world_size: int,
    progress: bool,
    times: PluginTimes | None = None,
    since: float | None = None,
) -> Prepared:
    """Tokenizer, stage, token shards and batch plan. `since`: when the run began on this process, before it first met
    the others; shards that one of them has verified after that are not verified again. Raises what is wrong with data,
    tokenizer, template or the model's config.json."""
    config = resolved.config
    require_trained_base(resolved)
    require_named_files(resolved)
    model_dir = resolve_model_dir(config.model.path)
    corrected: list[str] = []
    model_config = load_config(model_dir, trust_remote_code=config.model.trust_remote_code, warnings=corrected)
    require_routers(resolved, model_dir)
    factory = StageFactory(
        stage_name=resolved.stage.record.name,
        options=resolved.stage.options,
        tokenizer_dir=config.model.tokenizer or str(tokenizer_source(model_dir)),
        chat_template=config.model.chat_template,
        trust_remote_code=config.model.trust_remote_code,
        max_length=config.data.max_length,
        strict=config.data.strict,
        template_kwargs=config.model.chat_template_kwargs,
        special_tokens=config.data.special_tokens,
        switches=switches,
        add_tokens=tuple(config.model.add_tokens),
    )
    tokenizer = factory.tokenizer()
    factory = replace(factory, template_date=template_date(config, tokenizer))
    vocabulary = extended_vocabulary(config.model, model_config, tokenizer, factory, model_dir)
    stage = factory.stage(resolved.stage.record, tokenizer)
    require_rows(resolved, stage, world_size)
    fingerprint = tokenizer_fingerprint(tokenizer)
    shards = Shards(resolved, registry, stage, factory, fingerprint, progress, since)
    store = shards.store(config.data.path, resolved.formats, "data.path")
    rows, eval_store, eval_rows = np.arange(len(store)), store, np.arange(0)
    if config.data.eval_path is not None:
        eval_store = shards.store(config.data.eval_path, resolved.eval_formats, "data.eval_path")
        eval_rows = np.arange(len(eval_store))
    elif config.data.eval_split is not None:
        rows, eval_rows = split_eval(store.rows(), config.data.eval_split, config.train.seed)
    for made in {id(store): store, id(eval_store): eval_store}.values():
        if times is not None and not made.report.reused:
            times.add("stages", resolved.stage.name, "encode, with reading", made.report.seconds)
    longest = max(store.longest_sequence(), eval_store.longest_sequence())
    plan = plan_of(resolved, store, rows, world_size)
    warnings = (*check_positions(model_config, longest), *try_schedule(resolved, plan.total_steps))
    plugin = Plugin.of(resolved.stage.record)
    return Prepared(
        resolved=resolved,
        model_dir=model_dir,
        model_config=model_config,
        tokenizer=tokenizer,
        tokenizer_fingerprint=fingerprint,
        vocabulary=vocabulary,
        template_date=factory.template_date,
        stage=timed(times, "stages", resolved.stage.name, guarded_stage(stage, plugin, vocabulary.rows)),
        store=store,
        rows=rows,
        plan=plan,
        eval_store=eval_store,
        eval_plan=plan_of(resolved, eval_store, eval_rows, world_size, evaluation=True) if len(eval_rows) else None,
        warnings=(*corrected, *evaluation_warnings(store, eval_store), *warnings),
    )


def assemble(
    prepared: Prepared,
    registry: Registry,
    engine: Engine,
    checkpoint: Path | None = None,
    times: PluginTimes | None = None,
) -> Assembled:
    """Model, adapter, policy, loss, optimizer and schedule, wrapped by the engine. `checkpoint`: take the weights from
    there, in a dtype that holds both its files and the start model's: neither is rounded."""
    resolved, config = prepared.resolved, prepared.resolved.config
    attention = chosen_attention(prepared, registry, engine)
    adapter: Adapter | None = build(resolved.adapter) if resolved.adapter is not None else None
    model = on_all_ranks(
        engine,
        lambda: _build(prepared, engine, adapter, attention.implementation, checkpoint),
        "loading the model",
    )
    unchanged = {} if adapter is not None else unchanged_weights(model, values=engine.rank == 0)
    about, warnings = described(resolved, adapter, model)
    routers, about_routers = router_training(model, config.model.router_aux_loss)
    loss = timed(times, "losses", resolved.loss.name, build(resolved.loss))
    module = TrainModule(
        model=model,
        stage=prepared.stage,
        stage_plugin=Plugin.of(resolved.stage.record),
        loss=loss,
        loss_plugin=Plugin.of(resolved.loss.record),
        make_loss=lambda: build(resolved.loss),
        used_outside=used_outside(model),
        routers=routers,
    )
    made: dict[str, Any] = {}

    def make_optimizer(groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        optimizer = made["optimizer"] = build_optimizer(resolved, groups, times)
        return optimizer

    def make_scheduler(optimizer: torch.optim.Optimizer) -> Any:
        made["scheduler"] = build_scheduler(resolved, optimizer, prepared.plan.total_steps)
        return made["scheduler"]

    engine.prepare(
        module=module,
        groups=parameter_groups(model, lr_scales(adapter)),
        make_optimizer=make_optimizer,
        make_scheduler=make_scheduler,
    )
    if len(made) < 2:
        wants = "`prepare` calls make_optimizer, then make_scheduler"
        raise breach(Plugin.of(resolved.engine.record), "prepared a run without an optimizer or a schedule", wants)
    leak, single, may_share = attention.against_isolation, single_document(prepared), shares_prefixes(prepared)
    if not attention.proven:
        leak = engine.call(lambda: examine(model, several_documents=not single, shares_prefixes=may_share))
    one_document, share = single or leak is not None, may_share and attention.against_sharing is None
    module.policy = engine.call(lambda: make_policy(model, one_document=one_document, share_prefixes=share))
    features = (
        ("adapter", about),
        *tower_features(model, saved=adapter is None),
        ("loss", resolved.loss.name),
        *prepared.vocabulary.features,
        *about_routers,
        *attention.features,
        *module.policy.features,
        *document_passes(prepared, module.policy),
        ("gradient checkpointing", "on" if config.model.gradient_checkpointing else "off"),
        ("packing", "on" if config.data.packing else "off (still no padding: documents are concatenated)"),
        *engine.features(),
    )
    return Assembled(
        model=model,
        adapter=adapter,
        module=module,
        features=features,
        warnings=warnings,
        placement=placement_of(engine),
        unchanged=unchanged,
    )


def _build(prepared: Prepared, engine: Engine, adapter: Adapter | None, attention: str, checkpoint: Path | None) -> Any:
    resolved, config = prepared.resolved, prepared.resolved.config
    from_config = resolved.stage.record.model_from == "config"
    start_dtype = torch.float32 if from_config else stored_dtype(prepared.model_dir)
    weights = checkpoint if adapter is None else None
    model = build_model(
        directory=weights or prepared.model_dir,
        from_config=from_config and weights is None,
        dtype=torch.promote_types(start_dtype, stored_dtype(weights)) if weights else start_dtype,
        compute_dtype=engine.dtype,
        attention=attention,
        seed=config.train.seed,
        gradient_checkpointing=config.model.gradient_checkpointing,
        trust_remote_code=config.model.trust_remote_code,
        head=resolved.stage.record.head,
        pad_token_id=prepared.tokenizer.pad_token_id,
        skeleton=not engine.holds_model,
        rows=prepared.vocabulary.rows,
    )
    add_stop_ids(model, trained_stop_ids(resolved.stage.record, prepared.tokenizer))
    if adapter is None:
        return model
    new = prepared.vocabulary.new_ids
    return adapted(resolved, adapter, model, base=prepared.model_dir, checkpoint=checkpoint, new_tokens=new)


def load_start_model(prepared: Prepared, directory: Path, engine: Engine, *, attention: str, with_adapter: bool) -> Any:
    """Another copy of the model that a run starts with, or of the one in `directory` (see `build_model`)."""
    resolved, config = prepared.resolved, prepared.resolved.config
    model = build_model(
        directory=directory,
        from_config=False,
        dtype=stored_dtype(directory),
        attention=attention,
        seed=config.train.seed,
        trust_remote_code=config.model.trust_remote_code,
        head=resolved.stage.record.head,
        pad_token_id=prepared.tokenizer.pad_token_id,
        compute_dtype=engine.dtype,
        skeleton=not engine.holds_model,
        rows=prepared.vocabulary.rows,
    )
    if with_adapter and resolved.adapter is not None:
        new = prepared.vocabulary.new_ids
        return adapted(resolved, build(resolved.adapter), model, base=directory, new_tokens=new)
    return model
