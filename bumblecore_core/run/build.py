"""Builds what a run's configuration has chosen, and holds it to its contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from bumblecore_core.config.resolved import ResolvedRun, Selected
from bumblecore_core.errors import PluginError
from bumblecore_core.protocols import Engine, EngineContext
from bumblecore_core.records import AttentionRecord
from bumblecore_core.registry import Registry
from bumblecore_core.run.blame import Plugin, RunPlugins, blamed
from bumblecore_core.run.built import check_built, check_optimizer, check_scheduler
from bumblecore_core.run.guarded import GuardedEngine, guard_steps, guarded_adapter
from bumblecore_core.run.profiling import PluginTimes
from bumblecore_core.run.schedule_check import check_schedule
from bumblecore_core.values import ParameterGroup


def build(selected: Selected[Any], **given: Any) -> Any:
    """What the chosen record builds. Raises `PluginError` BC060, with the plugin's name, for an exception in there and
    for an object that is not what the contract wants."""
    plugin = Plugin.of(selected.record)
    with blamed(plugin):
        built = selected.record.build(options=selected.options, **given)
    check_built(plugin, built)
    return guarded_adapter(built, plugin) if plugin.kind == "adapters" else built


def build_engine(resolved: ResolvedRun, registry: Registry) -> Engine:
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
    plugins = RunPlugins.of(resolved)
    others = [*plugins, *(Plugin.of(record) for record in attention_records(registry))]
    engine = build(resolved.engine, context=context)
    return cast(Engine, GuardedEngine(engine, plugins.engine, others, plugins.scheduler))


def build_optimizer(
    resolved: ResolvedRun, groups: Sequence[ParameterGroup], times: PluginTimes | None
) -> torch.optim.Optimizer:
    """The optimizer of `groups`, whose steps name it where they raise; `times` collects what they took."""
    optimizer: torch.optim.Optimizer = build(resolved.optimizer, groups=groups)
    plugin = Plugin.of(resolved.optimizer.record)
    check_optimizer(plugin, optimizer, groups)
    guard_steps(optimizer, plugin)
    return optimizer if times is None else times.watch(resolved.optimizer.name, optimizer)


def build_scheduler(resolved: ResolvedRun, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    """The schedule, once it is known to give a learning rate in each step of the run."""
    check_schedule(resolved.scheduler, optimizer, total_steps)
    return _scheduler(resolved, optimizer, total_steps)


def try_schedule(resolved: ResolvedRun, total_steps: int) -> tuple[str, ...]:
    """Raises what is wrong with the run's schedule before a model is loaded, with an optimizer of tiny parameters, and
    returns warnings. An optimizer that cannot be built for these is left to the run."""
    groups = [
        ParameterGroup(name="decay", params=[torch.nn.Parameter(torch.zeros(2, 2))], decay=True),
        ParameterGroup(name="no_decay", params=[torch.nn.Parameter(torch.zeros(2))], decay=False),
    ]
    try:
        optimizer = build_optimizer(resolved, groups, None)
    except PluginError:
        return ()
    warnings = check_schedule(resolved.scheduler, optimizer, total_steps)
    _scheduler(resolved, optimizer, total_steps)
    return warnings


def _scheduler(resolved: ResolvedRun, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    chosen = resolved.scheduler
    scheduler = build(chosen, optimizer=optimizer, total_steps=total_steps)
    check_scheduler(Plugin.of(chosen.record), scheduler, optimizer, needs_metric=chosen.record.needs_metric)
    return scheduler


def attention_records(registry: Registry) -> list[AttentionRecord]:
    """Every attention implementation that is installed."""
    return [cast(AttentionRecord, provided.record) for provided in registry.all("attentions")]
