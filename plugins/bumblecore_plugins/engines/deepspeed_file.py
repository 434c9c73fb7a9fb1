"""The user's DeepSpeed JSON file: read, and what this engine cannot take from there refused, all at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from bumblecore_core import ConfigError, Problem, did_you_mean, one
from bumblecore_core.toolkit.regular_files import require_regular

AUTO, NVME = "auto", "nvme"
FIELD = "engine.config_file"
OFFLOADS = ("offload_optimizer", "offload_param")
ELSEWHERE = {
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "tensorboard": "loggers",
    "wandb": "loggers",
    "csv_monitor": "loggers",
    "comet": "loggers",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "train.float32_gradients",
    "communication_data_type": "train.float32_gradients",
    "steps_per_print": "train.logging_steps",
    "prescale_gradients": "train.average_tokens_across_devices",
    "gradient_predivide_factor": "train.average_tokens_across_devices",
    "gradient_allreduce_op": "train.average_tokens_across_devices",
}
"""What a DeepSpeed file may not set, since a run's configuration has its own place for it."""
UNSUPPORTED = frozenset(
    {
        *("autotuning", "compile", "compression_training", "curriculum_learning", "data_efficiency", "datastates"),
        *("eigenvalue", "elasticity", "expert_parallel", "graph_harvesting", "hybrid_engine"),
        *("managed_gradient_accumulation", "nebula", "pipeline", "progressive_layer_drop", "quantize_training"),
        *("sequence_parallel_size", "sparse_attention", "sparse_gradients", "tensor_parallel", "weight_quantization"),
    }
)
"""Features that DeepSpeed has removed, or that change what is computed in ways that this engine does not know."""
SECTIONS: Mapping[str, frozenset[str] | None] = {
    "zero_optimization": None,
    "bf16": None,
    "fp16": None,
    "comms_logger": None,
    "checkpoint": None,
    "timers": frozenset({"throughput"}),
    "aio": frozenset(
        {"block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"}
    ),
    "activation_checkpointing": frozenset(
        {
            *("partition_activations", "contiguous_memory_optimization", "cpu_checkpointing", "number_checkpoints"),
            *("synchronize_checkpoint_boundary", "profile"),
        }
    ),
    "flops_profiler": frozenset(
        {
            *("enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed"),
            "output_file",
        }
    ),
}
"""Sections that are passed on; with their keys, where DeepSpeed itself ignores those that it does not know."""
VALUES = frozenset(
    {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "wall_clock_breakdown", "memory_breakdown"),
        *("dump_state", "disable_allgather", "disable_python_gc", "dataloader_drop_last", "log_level"),
        *("seq_parallel_communication_data_type", "use_data_before_expert_parallelism", "vocabulary_size"),
    }
)
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
UNSUPPORTED_ZERO: Mapping[str, Any] = {
    "compute_grad_norm": True,
    "legacy_stage1": False,
    "stage3_module_granularity_threshold": 0,
    "zenflow": None,
}
"""Switches of `zero_optimization` that cannot be other than this: the engine needs the gradients' norm, and weights
one module at a time."""
HALF_PRECISION_STATE = {
    "bf16": ("bf16_master_weights_and_grads", "bf16_optimizer_states"),
    "fp16": ("fp16_master_weights_and_grads", "auto_cast"),
}
"""Switches that contradict the float32 masters that this engine keeps."""


def read_config_file(path: str | None, warn: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """What the file sets, without its "auto" values; empty without a file. `warn` gets a line for each unknown key.

    Raises `ConfigError`: BC061 for a file that cannot be read, BC039 for one that is not a JSON object and, in one
    error, for everything in it that this engine cannot take from there.
    """
    if path is None:
        return {}
    file = Path(os.path.expanduser(path))
    found = _read(file)
    if "bfloat16" in found and "bf16" not in found:  # as DeepSpeed called it once
        found["bf16"] = found.pop("bfloat16")
    wrong: list[tuple[str, str]] = []
    given: dict[str, Any] = {}
    for key, written in found.items():
        value = _without_auto(written)
        if written == AUTO:
            continue
        if key in UNSUPPORTED or key in ELSEWHERE:
            if not _sets_nothing(written):
                wrong.append(_refused(key))
            elif isinstance(written, dict) and "type" in written and key in ELSEWHERE:
                own = f"the run has its own `{ELSEWHERE[key]}`"
                warn(f"the DeepSpeed file's {key} '{written['type']}' is not used: {own}")
        elif key not in SECTIONS and key not in VALUES:
            known = [*SECTIONS, *VALUES, *ELSEWHERE, *UNSUPPORTED]
            warn(f"BC034 {file}: unknown key '{key}' is ignored; {_nearest(key, known)}")
        elif key in SECTIONS and not isinstance(value, dict):
            wrong.append((f"in the DeepSpeed file '{key}' is {value!r}, not an object", "Correct it"))
        else:
            given[key] = value
    for key, names in SECTIONS.items():
        for name in [] if names is None else set(given.get(key, ())) - names:
            warn(f"BC034 {file}: unknown key '{key}.{name}' is ignored; {_nearest(name, names or ())}")
            del given[key][name]
    wrong += [*_precision_problems(given), *_zero_problems(given.get("zero_optimization", {}))]
    if (level := given.get("log_level", LOG_LEVELS[0])) not in LOG_LEVELS:
        wrong.append((f"in the DeepSpeed file log_level is {level!r}", f"Set it to one of {', '.join(LOG_LEVELS)}"))
    if wrong:
        raise ConfigError(
            [
                Problem(code="BC039", problem=problem, fix=fix, place=str(file), field=FIELD)
                for problem, fix in dict.fromkeys(wrong)
            ]
        )
    return given


def _read(file: Path) -> dict[str, Any]:
    require_regular(file, ConfigError, field=FIELD)
    try:
        found = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except OSError as error:
        problem = f"the DeepSpeed file cannot be read: {error.strerror or error}"
        raise one(ConfigError, "BC061", problem, "Check the path", place=str(file), field=FIELD) from None
    except (ValueError, RecursionError) as error:
        problem = f"the DeepSpeed file is not JSON: {error}"
        raise one(ConfigError, "BC039", problem, "Correct the file", place=str(file), field=FIELD) from None
    if not isinstance(found, dict):
        problem = "the DeepSpeed file holds no object"
        raise one(ConfigError, "BC039", problem, "Correct it", place=str(file), field=FIELD)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' appears twice in one object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _without_auto(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_auto(item) for key, item in value.items() if item != AUTO}
    return value


def _sets_nothing(written: Any) -> bool:
    """Whether a section or value is switched off, empty, or all "auto" but for its type, as files made for other
    programs have it: `"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}`."""
    if not isinstance(written, dict):
        return written is None or written is False
    values = list(_leaves({name: value for name, value in written.items() if name != "type"}))
    automatic = all(value == AUTO for value in values) and bool(values or "type" not in written)
    return automatic or written.get("enabled") is False


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    else:
        yield value


def _refused(key: str) -> tuple[str, str]:
    if key in UNSUPPORTED:
        return f"the DeepSpeed file has '{key}', which this engine does not support", "Remove it there"
    problem = f"the DeepSpeed file has '{key}', which this run does not read from there"
    return problem, f"Remove it there, and choose with `{ELSEWHERE[key]}` in the run's configuration"


def _nearest(key: str, known: Collection[str]) -> str:
    hint = did_you_mean(key, known)
    return hint if hint.startswith("did") else "check its spelling"


def _precision_problems(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"the DeepSpeed file has '{section}.{name}', and this engine keeps float32 masters", "Remove it there")
        for section, names in HALF_PRECISION_STATE.items()
        for name in names
        if given.get(section, {}).get(name)
    ]


def _zero_problems(zero: dict[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with a section `zero_optimization`; an offload of null is taken out of it."""
    wrong = []
    stage = zero.get("stage", 0)
    if not isinstance(stage, int) or isinstance(stage, bool) or stage not in range(4):
        wrong.append((f"in the DeepSpeed file zero_optimization.stage is {stage!r}", "Set it to 0, 1, 2 or 3"))
    for name in OFFLOADS:
        offload = zero.get(name)
        if offload is None:
            zero.pop(name, None)
        elif not isinstance(offload, dict) or offload.get("device", "none") not in ("none", "cpu", NVME):
            problem = f"in the DeepSpeed file {name} is {offload!r}: its device can be cpu or nvme"
            wrong.append((problem, f'Set it to {{"device": "cpu"}}, or remove {name}'))
        elif not isinstance(offload.get("nvme_path", ""), str | None):
            wrong.append((f"in the DeepSpeed file {name}.nvme_path is {offload['nvme_path']!r}", "Write a path"))
    for name, only in UNSUPPORTED_ZERO.items():
        if zero.get(name, only) != only:
            wrong.append((f"the DeepSpeed file has '{name}', which this engine does not support", "Remove it there"))
    return wrong
