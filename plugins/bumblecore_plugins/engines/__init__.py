"""Built-in engines: what owns devices, backward and step."""

from typing import Literal

from pydantic import Field

from bumblecore_core import EngineContext, EngineRecord, Options, hookimpl
from bumblecore_core.protocols import Engine


class TorchOptions(Options):
    """Options of the engine `torch`."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto: the GPU where there is one, the CPU otherwise."
    )
    timeout_seconds: float = Field(
        600.0, gt=0, description="How long a process waits for the others before the run ends with an error."
    )
    bucket_megabytes: float = Field(
        25.0, gt=0, description="Gradients are summed over processes in buckets of this size (10^6 bytes)."
    )


def _torch(*, options: TorchOptions, context: EngineContext) -> Engine:
    from bumblecore_plugins.engines.torch_engine import TorchEngine

    return TorchEngine(options=options, context=context)


@hookimpl
def bumble_engines():
    """Plain PyTorch."""
    return [
        EngineRecord(
            name="torch",
            summary="PyTorch on the CPU, one GPU, or data parallel under torchrun.",
            build=_torch,
            options=TorchOptions,
        )
    ]
