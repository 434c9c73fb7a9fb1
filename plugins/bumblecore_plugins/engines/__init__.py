"""Built-in engines: what owns devices, backward and step."""

from typing import Annotated, Literal

from pydantic import Field

from bumblecore_core import ByContent, EngineContext, EngineRecord, Options, PerHost, hookimpl
from bumblecore_core.protocols import Engine
from bumblecore_core.toolkit.packages import require_supported


class TorchOptions(Options):
    """Options of the engine `torch`."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto: the GPU where there is one, the CPU otherwise."
    )
    timeout_seconds: float = Field(
        600.0,
        gt=0,
        description="Seconds that a collective may take, or a process be silent, before the run ends with an error.",
    )
    bucket_megabytes: float = Field(
        25.0, gt=0, description="Gradients are summed over processes in buckets of this size (10^6 bytes)."
    )


class DeepSpeedOptions(Options):
    """Options of the engine `deepspeed`."""

    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        None,
        description="ZeRO stage: 0 plain data parallel, 1 optimizer state sharded over processes, 2 gradients too, 3 "
        "weights too; null: that of config_file, else 2.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto: the GPU where there is one, the CPU otherwise."
    )
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field(
        "none",
        description="Where optimizer state and float32 masters lie: with the weights, in the CPU's memory, or (ZeRO "
        "stage 3) on a disk.",
    )
    offload_parameters: Literal["none", "cpu", "nvme"] = Field(
        "none",
        description="Where ZeRO-3's shards of the weights lie: on the device, in the CPU's memory, or on a disk.",
    )
    nvme_path: Annotated[str | None, PerHost()] = Field(
        None, description="A directory on a fast local disk for what is offloaded to nvme; emptied when the run ends."
    )
    config_file: Annotated[str | None, ByContent()] = Field(
        None, description="A DeepSpeed JSON file for everything else; what this configuration says must agree with it."
    )
    timeout_seconds: float = Field(
        600.0,
        gt=0,
        description="Seconds that a collective may take, or a process be silent, before the run ends with an error.",
    )


def _deepspeed(*, options: DeepSpeedOptions, context: EngineContext) -> Engine:
    # private attributes of ZeRO's optimizers are used: in another version they may be missing or mean something else
    require_supported("deepspeed", field="engine")
    from bumblecore_plugins.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(options=options, context=context)


def _torch(*, options: TorchOptions, context: EngineContext) -> Engine:
    from bumblecore_plugins.engines.torch_engine import TorchEngine

    return TorchEngine(options=options, context=context)


@hookimpl
def bumble_engines():
    """Plain PyTorch, and DeepSpeed where a model outgrows one device."""
    return [
        EngineRecord(
            name="torch",
            summary="PyTorch on the CPU, one GPU, or data parallel under torchrun.",
            build=_torch,
            options=TorchOptions,
            reshaping=("timeout_seconds", "bucket_megabytes"),
        ),
        EngineRecord(
            name="deepspeed",
            summary="DeepSpeed: ZeRO 0 to 3, with or without offload to CPU or NVMe.",
            build=_deepspeed,
            options=DeepSpeedOptions,
            reshaping=("zero_stage", "offload_optimizer", "offload_parameters", "nvme_path", "timeout_seconds"),
        ),
    ]
