"""What ZeRO-3 keeps on a disk comes to the same bits as what it keeps in the CPU's memory.

DeepSpeed's file operator is compiled first, which takes minutes; without libaio or a compiler the tests are skipped.
"""

import math

import pytest
import torch
from engine_twin import Wrapped, adamw, groups, tiny
from test_deepspeed_engine import constant, weights, window

from bumblecore_core import ConfigError, EngineContext
from bumblecore_plugins.engines import DeepSpeedOptions
from bumblecore_plugins.engines.deepspeed_engine import DeepSpeedEngine
from bumblecore_plugins.engines.zero_nvme import swapped

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
HIDDEN = 640  # a matrix has more than 1 MiB then
WINDOWS = [
    {},
    {"shares": (None, None)},
    {"shares": (None, 1.0), "gradient_scale": 0.5},
    {"poison": math.inf},
    {"shares": (1.0, None)},
    {"gradient_scale": math.nan},
    {},
]


def engine_of(device, place, dtype, start=None):
    options = DeepSpeedOptions(
        device="cpu", zero_stage=3, offload_optimizer=device, offload_parameters=device, nvme_path=str(place)
    )
    context = EngineContext(dtype=dtype, gradient_accumulation_steps=2, max_grad_norm=1.0)
    try:
        engine = DeepSpeedEngine(options=options, context=context)
    except ConfigError as error:
        if "async_io" in str(error):
            pytest.skip("libaio or a compiler is not here")
        raise
    model = tiny(hidden=HIDDEN)
    if start is not None:
        model.load_state_dict(start)
    engine.prepare(module=Wrapped(model), groups=groups(model), make_optimizer=adamw, make_scheduler=constant)
    return engine


def trained(engine, windows):
    return [window(engine, **given) for given in windows]


def assert_equal(one, other):
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_and_going_on_give_the_bits_of_offload_to_the_cpu(tmp_path, dtype):
    memory, disk = engine_of("cpu", tmp_path, dtype), engine_of("nvme", tmp_path, dtype)
    again = None
    try:
        assert any(swapped(disk._zero, owner) for owner, _ in disk._state._owners)
        assert_equal(memory, disk)
        assert trained(memory, WINDOWS) == trained(disk, WINDOWS)
        assert_equal(memory, disk)
        for name, engine in (("memory", memory), ("disk", disk)):
            (tmp_path / name / "rank-0").mkdir(parents=True)
            engine.training_state(copy=False)(tmp_path / name / "rank-0")
        (files,) = tmp_path.glob("bumble-zero-*")
        assert list(files.rglob("*.swp"))
        assert list((tmp_path / "disk" / "rank-0").glob("zero-shards-*.safetensors"))
        # each takes up what the other wrote
        again = {
            name: engine_of(device, tmp_path, dtype, weights(memory))
            for name, device in (("memory", "nvme"), ("disk", "cpu"))
        }
        for name, engine in again.items():
            engine.load_training_state(directory=tmp_path / name)
        expected = trained(memory, WINDOWS)
        assert trained(again["memory"], WINDOWS) == trained(again["disk"], WINDOWS) == expected
        assert_equal(again["memory"], memory)
        assert_equal(again["disk"], memory)
    finally:
        for engine in (memory, disk, *(again or {}).values()):
            engine.close()
    assert not list(tmp_path.glob("bumble-zero-*"))
