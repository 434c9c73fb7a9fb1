"""Using the library DeepSpeed without what it does to the process around it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError

from bumblecore_core import ConfigError, Problem, did_you_mean
from bumblecore_core.toolkit.launch_environment import Launch
from bumblecore_core.toolkit.library_errors import library_message
from bumblecore_plugins.engines.deepspeed_file import FIELD
from bumblecore_plugins.engines.distributed import limit_groups


def load_deepspeed() -> Any:
    """The library, quiet, on the process group that is there. Its shared-memory operator serves inference alone; it
    would be compiled here, by every rank at once."""
    import logging

    with silent():  # the import tries a linker on libraries that only NVMe offload needs
        import deepspeed
        from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # of names it still uses
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def check_with_deepspeed(config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Has DeepSpeed look at a configuration, with settings `given` by a file, before anything is loaded. Raises
    `ConfigError` BC039 for all that it does not take, with the nearest name for a key that it does not know."""
    if not given:  # our own settings need no look, which takes seconds
        return
    with silent():
        from deepspeed.comm.config import CommsLoggerConfig
        from deepspeed.runtime.config import DeepSpeedConfig
        from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        models = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
        models["comms_logger"] = CommsLoggerConfig
        problems = [
            problem
            for section, model in models.items()
            for problem in _section_problems(section, model, config.get(section, {}))
        ]
        if not problems:
            # The number of processes, from which it computes the batch size, is known to it only once they are joined.
            alone = {key: value for key, value in config.items() if key != "train_batch_size"}
            try:
                DeepSpeedConfig(alone)
            except Exception as error:
                problems = [_refused(f"DeepSpeed does not take the configuration: {library_message(error)}")]
    if problems:
        raise ConfigError(problems)


@contextmanager
def refusals(given: Mapping[str, Any]) -> Iterator[None]:
    """Turns what DeepSpeed raises when it is made with the settings `given` by a file into `ConfigError` BC039: some of
    them it looks at only then."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError) as error:
        if not given:
            raise
        raise ConfigError([_refused(f"DeepSpeed does not take the configuration: {library_message(error)}")]) from error


def _section_problems(section: str, model: Any, values: Mapping[str, Any]) -> list[Problem]:
    try:
        model(**values)
    except ValidationError as error:
        return [_refused(_wrong_value(section, model, found)) for found in error.errors()]
    except Exception as error:
        return [_refused(f"DeepSpeed does not take the section {section}: {library_message(error)}")]
    return []


def _wrong_value(section: str, model: Any, found: Any) -> str:
    where = ".".join([section, *map(str, found["loc"])])
    if found["type"] != "extra_forbidden":
        return f"the DeepSpeed file's {where} is not what DeepSpeed takes: {found['msg']}"
    fields = model.model_fields if len(found["loc"]) == 1 else {}
    names = [name for key, field in fields.items() for name in (key, field.alias) if name]
    hint = did_you_mean(str(found["loc"][-1]), names)
    return f"the DeepSpeed file has an unknown key, {where}" + (f"; {hint}" if hint.startswith("did") else "")


def _refused(problem: str) -> Problem:
    return Problem(code="BC039", problem=problem, fix="Correct the file", field=FIELD)


@contextmanager
def silent() -> Iterator[None]:
    """Drops what this process and its children write to the terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    with open(os.devnull, "w") as nothing:
        for stream, _ in kept:
            os.dup2(nothing.fileno(), stream)
    try:
        yield
    finally:
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)


def enter_environment(launch: Launch) -> Callable[[], None]:
    """DeepSpeed reads its place from the environment, also where a process is alone. Returns what takes it back."""
    place = {"RANK": str(launch.rank), "WORLD_SIZE": str(launch.world_size), "LOCAL_RANK": str(launch.local_rank)}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # nobody connects: these are set where there are others
    added = [key for key in place if key not in os.environ]
    os.environ.update({key: place[key] for key in added})

    def leave() -> None:
        for key in added:
            os.environ.pop(key, None)

    return leave


class TensorsOut(torch.nn.Module):
    """What DeepSpeed wraps: the run's module, with a tensor as its output, for ZeRO-3 hangs its hooks on tensors. The
    whole output of the last forward is in `latest`."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.model = getattr(module, "model", module)
        self._forward = module.forward  # as a function: hooks on the run's module would look into its output
        self.latest: Any = None
        self._used_outside = getattr(module, "used_outside", ())

    def keep_whole(self) -> None:
        """Has ZeRO-3 bring together, for each forward, the weights that are used outside their own modules."""
        import deepspeed

        for parameter in self._used_outside:
            deepspeed.zero.register_external_parameter(self, parameter)

    def forward(self, batch: Any) -> torch.Tensor | None:
        """The loss sum of a batch; None where `batch` is a function to be called in here."""
        self.latest = self._forward(batch)
        return getattr(self.latest, "loss_sum", None)


def frozen_shards(wrapped: TensorsOut, config: Mapping[str, Any], seconds: float) -> Callable[[Any], Any]:
    """What calls a module whose weights ZeRO-3 has spread over the ranks, without gradients; `seconds`: the time limit
    of its collectives."""
    import deepspeed

    with silent(), same_buffers(wrapped.model):
        engine, *_ = deepspeed.initialize(model=wrapped, config=dict(config), dist_init_required=False)
    limit_groups(seconds)
    wrapped.keep_whole()
    engine.eval()

    @torch.no_grad()
    def call(given: Any) -> Any:
        engine(given)
        return wrapped.latest

    return call


@contextmanager
def untouched(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Some of DeepSpeed's optimizers take a step with gradients of zero when they are made. At a learning rate of zero
    it changes no weight; what it leaves in the optimizer's state goes."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    yield
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.state.clear()


@contextmanager
def same_buffers(module: torch.nn.Module) -> Iterator[None]:
    """DeepSpeed casts buffers with the weights; rotary frequencies in half precision would shift positions."""
    before = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    yield
    for part, name, buffer in before:
        part._buffers[name] = buffer.to(part._buffers[name].device)
