"""The configuration that DeepSpeed gets: what the run says, over what the user's own DeepSpeed file says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bumblecore_core import ConfigError, EngineContext, Problem, one
from bumblecore_plugins.engines import DeepSpeedOptions
from bumblecore_plugins.engines.deepspeed_file import FIELD, NVME, OFFLOADS
from bumblecore_plugins.engines.precision import NAMES

DEFAULT_STAGE = 2
LARGEST_BUCKET = 500_000_000
SWAPPED_GROUP = 100_000_000


def zero_stage(options: DeepSpeedOptions, given: Mapping[str, Any]) -> int:
    """The ZeRO stage of the options, else the file's, else 2. Raises `ConfigError` BC039 where both differ."""
    of_file = given.get("zero_optimization", {}).get("stage")
    if options.zero_stage is not None and of_file is not None and options.zero_stage != of_file:
        raise ConfigError([_conflict("zero_optimization.stage", of_file, "engine.zero_stage", options.zero_stage)])
    found = options.zero_stage if options.zero_stage is not None else of_file
    return DEFAULT_STAGE if found is None else int(found)


def offload_devices(options: DeepSpeedOptions, given: Mapping[str, Any]) -> dict[str, str]:
    """Where optimizer state and weights go (none, cpu or nvme), by the name that DeepSpeed's section has for them: what
    the options say, else the file."""
    zero = given.get("zero_optimization", {})
    asked = zip(OFFLOADS, (options.offload_optimizer, options.offload_parameters), strict=True)
    return {name: zero.get(name, {}).get("device", "none") if device == "none" else device for name, device in asked}


def nvme_directory(options: DeepSpeedOptions, given: Mapping[str, Any]) -> Path | None:
    """The directory for what is offloaded to nvme; None where nothing is. Raises `ConfigError` BC039, BC061."""
    zero = given.get("zero_optimization", {})
    users = [name for name, device in offload_devices(options, given).items() if device == NVME]
    if not users:
        return None
    found = options.nvme_path
    for path in (zero.get(name, {}).get("nvme_path") for name in users):
        if path is not None and found is not None and path != found:
            raise ConfigError([_conflict("nvme_path", path, "engine.nvme_path", found)])
        found = path if found is None else found
    if found is None:
        fix = "Set it to a directory on a fast local disk"
        raise one(ConfigError, "BC039", "offload to nvme needs a place", fix, field="engine.nvme_path")
    directory = Path(os.path.expanduser(found))
    if not os.path.isdir(directory):
        problem = "the directory for offload to nvme does not exist"
        raise one(ConfigError, "BC061", problem, "Create it", place=str(directory), field="engine.nvme_path")
    return directory


def spread_over_ranks(stage: int) -> tuple[str, ...]:
    """What a ZeRO stage cuts into a part for each rank, by the names of the estimate of memory."""
    everything = ("AdamW moments", "float32 masters", "gradients", "weights")
    return everything[: stage + (stage > 0)]


def left_device(zero: Mapping[str, Any], device: torch.device) -> dict[str, str]:
    """Where offload by the section `zero` puts what would lie in the device's memory, by the names of the estimate. To
    the memory of the CPU nothing goes that is there already."""
    purposes = {OFFLOADS[0]: ("AdamW moments", "float32 masters"), OFFLOADS[1]: ("weights",)}
    places = {NVME: "on the disk", **({} if device.type == "cpu" else {"cpu": "in the memory of the cpu"})}
    devices = {name: zero.get(name, {}).get("device", "none") for name in OFFLOADS}
    return {what: places[to] for name, to in devices.items() if to in places for what in purposes[name]}


def sizes_of(model: Any, trained: Sequence[torch.nn.Parameter], world_size: int) -> dict[str, int | None]:
    """What `make_config` sizes buffers from: see there. Of a model whose weights have not been cut yet."""
    config = getattr(model, "config", None)
    return {
        "hidden_size": None if config is None else getattr(config.get_text_config(), "hidden_size", None),
        "trained": sum(parameter.numel() for parameter in trained),
        "largest": max(-(-parameter.numel() // world_size) for parameter in model.parameters()),
    }


def make_config(
    *,
    options: DeepSpeedOptions,
    given: Mapping[str, Any],
    context: EngineContext,
    dtype: torch.dtype,
    world_size: int,
    hidden_size: int | None = None,
    trained: int | None = None,
    largest: int | None = None,
    swap_directory: Path | None = None,
) -> dict[str, Any]:
    """DeepSpeed's configuration. `given` (see `read_config_file`) is kept, but for what the run's configuration says:
    there both must agree.

    Stage 3's buckets are sized from `hidden_size` H: reduce H², prefetch 0.9·H², persistence 10·H (numbers of
    elements), so that a bucket is about one weight matrix. Stages 1 and 2 get DeepSpeed's own 5·10⁸, but no more than
    the `trained` numbers that there are. What goes to nvme goes below `swap_directory`, optimizer tensors in groups of
    10⁸ numbers, weights through buffers of the `largest` part of a weight that a rank holds.

    Raises `ConfigError`: BC040 where the file's batch sizes are not micro-batch × accumulation × processes, BC039 for
    other values that contradict the run's.
    """
    stage, half = zero_stage(options, given), dtype != torch.float32
    micro, accumulation = context.micro_batch_size, context.gradient_accumulation_steps
    conflicts = _batch_problems(given, micro, accumulation, world_size, str(options.config_file))
    conflicts += _differing(given, ("gradient_clipping",), context.max_grad_norm or 0.0, "train.max_grad_norm")
    for name in ("bf16", "fp16"):
        enabled = dtype == getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[name])
        conflicts += _differing(given, (name, "enabled"), enabled, f"model.dtype ({NAMES[dtype]})")
    if conflicts:
        raise ConfigError(conflicts)
    zero: dict[str, Any] = {"overlap_comm": False, "contiguous_gradients": True}
    if stage == 3 and hidden_size:
        zero["reduce_bucket_size"] = hidden_size * hidden_size
        zero["stage3_prefetch_bucket_size"] = int(0.9 * hidden_size * hidden_size)
        zero["stage3_param_persistence_threshold"] = 10 * hidden_size
    if stage in (1, 2) and trained:
        zero["reduce_bucket_size"] = zero["allgather_bucket_size"] = min(LARGEST_BUCKET, trained)
    zero |= dict(given.get("zero_optimization", {}))
    zero["stage"] = stage
    devices = offload_devices(options, given)
    _check_stage(devices, stage)
    for name, device in devices.items():
        if device != "none":
            zero[name] = {**zero.get(name, {}), "device": device}
        if device == NVME:
            defaults = {"buffer_count": 5} if name == OFFLOADS[0] else {"max_in_cpu": 0}
            if name == OFFLOADS[1] and largest:
                defaults["buffer_size"] = largest
            zero[name] = {**defaults, **zero[name], "nvme_path": str(swap_directory)}
            zero.setdefault("sub_group_size", SWAPPED_GROUP)
    accumulated = "fp32" if context.float32_gradients or not half else NAMES[dtype]
    return {
        "steps_per_print": 1 << 40,  # the run's loggers speak
        "communication_data_type": accumulated,
        "data_types": {"grad_accum_dtype": accumulated if stage else NAMES[dtype]},
        **given,
        "zero_allow_untested_optimizer": True,  # every optimizer of the registry
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * world_size,
        "gradient_clipping": context.max_grad_norm or 0.0,
        "bf16": {**given.get("bf16", {}), "enabled": dtype == torch.bfloat16},
        "fp16": {"initial_scale_power": 16, **given.get("fp16", {}), "enabled": dtype == torch.float16},
        "zero_optimization": zero,
    }


def _check_stage(devices: Mapping[str, str], stage: int) -> None:
    for (name, device), field in zip(devices.items(), ("offload_optimizer", "offload_parameters"), strict=True):
        if stage == 3 or device == "none" or (name == OFFLOADS[0] and device == "cpu"):
            continue
        what = "weights are offloaded" if name == OFFLOADS[1] else "optimizer state is offloaded to nvme"
        problem = f"{what} by ZeRO stage 3 alone, and this is stage {stage}"
        fix = f"Set engine.zero_stage to 3, or engine.{field} to {'cpu' if name == OFFLOADS[0] else 'none'}"
        raise one(ConfigError, "BC039", problem, fix, field=f"engine.{field}, engine.zero_stage")


def _batch_problems(
    given: Mapping[str, Any], micro: int, accumulation: int, world_size: int, file: str
) -> list[Problem]:
    expected = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * world_size,
    }
    wrong = [f"{key} is {given[key]}" for key, value in expected.items() if key in given and given[key] != value]
    if not wrong:
        return []
    problem = (
        f"the DeepSpeed file {file} says that {' and '.join(wrong)}; the run has micro_batch_size {micro} × "
        f"gradient_accumulation_steps {accumulation} × {world_size} processes = {micro * accumulation * world_size}"
    )
    fix = 'Remove these keys from the file (or set them to "auto"): the run\'s configuration says them'
    return [Problem(code="BC040", problem=problem, fix=fix, field=FIELD)]


def _differing(given: Mapping[str, Any], keys: tuple[str, ...], value: Any, field: str) -> list[Problem]:
    found: Any = given
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            return []
        found = found[key]
    return [] if found == value else [_conflict(".".join(keys), found, field, value)]


def _conflict(key: str, found: Any, field: str, value: Any) -> Problem:
    problem = f"the DeepSpeed file says {key}: {found}, the run says {field}: {value}"
    return Problem(code="BC039", problem=problem, fix="Remove the key from the file, or make both agree", field=FIELD)
