"""What a run would do: the start summary without weights, on the meta device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import PluginError
from bumblecore_core.protocols import Adapter
from bumblecore_core.registry import PluginSwitches, Registry
from bumblecore_core.run.adapt import adapted, described
from bumblecore_core.run.assemble import Prepared, prepare
from bumblecore_core.run.attention_of_run import chosen_attention
from bumblecore_core.run.build import build, build_engine
from bumblecore_core.run.facts import memory_facts, parameter_facts
from bumblecore_core.run.info import prepared_facts
from bumblecore_core.run.memory import placement_of
from bumblecore_core.run.model import meta_model, parameter_counts
from bumblecore_core.run.router_loss import router_training
from bumblecore_core.toolkit.adapter_tensors import quietly
from bumblecore_core.toolkit.vision_language import tower_features
from bumblecore_core.values import RunInfo


def plan_run(resolved: ResolvedRun, registry: Registry, switches: PluginSwitches, *, devices: int) -> RunInfo:
    """The summary of a run over `devices` devices like this machine's. Raises what is wrong as `prepare` does, and with
    an adapter's options."""
    config, since = resolved.config, time.time()
    engine = build_engine(resolved, registry)
    try:
        prepared = prepare(resolved, registry, switches, world_size=devices, progress=True, since=since)
        attention = chosen_attention(prepared, registry, engine)
        model, about, warnings = _planned_model(prepared)
        _, about_routers = router_training(model, config.model.router_aux_loss)
        counts = parameter_counts(model)
        weight_bytes = engine.dtype.itemsize
        return RunInfo(
            output_dir=Path(config.output_dir),
            stage=resolved.stage.record.name,
            total_steps=prepared.plan.total_steps,
            first_step=0,
            config=resolved.to_dict(),
            facts=[
                *(("warning", warning) for warning in warnings),
                *prepared_facts(prepared),
                *parameter_facts(counts.total, counts.trainable),
                *memory_facts(
                    config,
                    model.config,
                    counts.total,
                    counts.trainable,
                    weight_bytes,
                    prepared.plan,
                    placement_of(engine),
                ),
            ],
            features=[
                ("adapter", about),
                *tower_features(model, saved=resolved.adapter is None),
                ("loss", resolved.loss.record.name),
                *prepared.vocabulary.features,
                *about_routers,
                *attention.features,
                *engine.features(),
            ],
            sample=prepared.stage.preview(example=prepared.store.example(int(prepared.rows[0]))),
            smooth=resolved.stage.record.smooth,
        )
    finally:
        engine.close()


def _planned_model(prepared: Prepared) -> tuple[Any, str, tuple[str, ...]]:
    """(the model without its weights, what is said of its adapter, warnings)."""
    resolved = prepared.resolved
    trust = resolved.config.model.trust_remote_code
    head = resolved.stage.record.head
    rows, new_ids = prepared.vocabulary.rows, prepared.vocabulary.new_ids
    model = meta_model(prepared.model_dir, trust_remote_code=trust, head=head, rows=rows)
    if resolved.adapter is None:
        return model, *described(resolved, None, model)
    adapter: Adapter = build(resolved.adapter)
    try:
        with quietly():  # an adapter's saved weights go nowhere here
            model = adapted(resolved, adapter, model, base=prepared.model_dir, new_tokens=new_ids)
        return model, *described(resolved, adapter, model)
    except PluginError as error:
        if error.__cause__ is None:  # it returned the wrong thing
            raise
        # It needs numbers where there are none, which says nothing against the run itself.
        warning = f"what the adapter trains is known only once the weights are there: {error.problems[0].problem}"
        untouched = meta_model(prepared.model_dir, trust_remote_code=trust, head=head, rows=rows)
        return untouched, resolved.adapter.name, (warning,)
