"""What a run would do: the start summary without weights, on the meta device."""

from __future__ import annotations

from pathlib import Path

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.registry import PluginSwitches, Registry
from bumblecore_core.run.assemble import attention_records, build_engine, prepare
from bumblecore_core.run.attention import select_attention
from bumblecore_core.run.facts import memory_facts, parameter_facts
from bumblecore_core.run.info import prepared_facts
from bumblecore_core.run.model import meta_model
from bumblecore_core.values import RunInfo


def plan_run(resolved: ResolvedRun, registry: Registry, switches: PluginSwitches, *, devices: int) -> RunInfo:
    """The summary of a run over `devices` devices like this machine's. An adapter's trainable share is known only once
    the weights are there: without them every parameter counts as trainable."""
    config = resolved.config
    engine = build_engine(resolved)
    try:
        prepared = prepare(resolved, registry, switches, world_size=devices, progress=True)
        _, attention = select_attention(
            attention_records(registry), config.model.attention, device=engine.device, dtype=engine.dtype
        )
        model = meta_model(prepared.model_dir, trust_remote_code=config.model.trust_remote_code)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        weight_bytes = engine.dtype.itemsize
        return RunInfo(
            output_dir=Path(config.output_dir),
            stage=resolved.stage.record.name,
            total_steps=prepared.plan.total_steps,
            first_step=0,
            config=resolved.to_dict(),
            facts=[
                *prepared_facts(prepared),
                *parameter_facts(parameters, parameters),
                *memory_facts(config, model.config, parameters, parameters, weight_bytes, prepared.plan),
            ],
            features=[("loss", resolved.loss.record.name), ("attention", "; ".join(attention)), *engine.features()],
            sample=prepared.stage.preview(example=prepared.store.example(int(prepared.rows[0]))),
            smooth=resolved.stage.record.smooth,
        )
    finally:
        engine.close()
