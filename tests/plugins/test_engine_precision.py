"""What is settled before a model exists: dtype, device, and this process's place among others."""

from __future__ import annotations

import pytest
import torch
from engine_twin import Wrapped, batch, engine, tiny, train

from bumblecore_core import BumbleError, EngineContext
from bumblecore_core.toolkit.launch_environment import Launch, read_launch
from bumblecore_plugins.engines import bumble_engines
from bumblecore_plugins.engines.distributed import choose_device
from bumblecore_plugins.engines.precision import LossScale, bf16_hardware, resolve_dtype

CPU = torch.device("cpu")


def test_fp16_on_the_cpu_is_refused_before_there_is_a_model():
    record = bumble_engines()[0]
    with pytest.raises(BumbleError) as caught:
        record.build(options=record.options(device="cpu"), context=EngineContext(dtype="fp16"))
    assert caught.value.problems[0].code == "BC041"


def test_auto_is_bf16_only_with_hardware(monkeypatch):
    cases = ((False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16))
    for amx, avx512, expected in cases:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
        assert resolve_dtype("auto", CPU, master_weights=True)[0] == expected
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert bf16_hardware(CPU) is None
    dtype, why = resolve_dtype("bf16", CPU, master_weights=True)
    assert dtype == torch.bfloat16
    assert "emulated" in why


def test_fp16_without_masters_is_a_conflict(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_dtype("fp16", torch.device("cuda"), master_weights=True)[0] == torch.float16
    with pytest.raises(BumbleError) as caught:
        resolve_dtype("fp16", torch.device("cuda"), master_weights=False)
    assert caught.value.problems[0].code == "BC039"


def test_the_loss_scale_halves_on_overflow_and_doubles_after_good_steps():
    scale = LossScale(value=8.0, interval=2)
    values = []
    for overflowed in (True, False, False, False, True, False):
        scale.update(overflowed=overflowed)
        values.append(scale.value)
    assert values == [4.0, 4.0, 8.0, 8.0, 4.0, 4.0]


def test_the_loss_scale_doubles_again_after_as_many_good_steps_and_never_falls_below_one():
    scale = LossScale(value=1.5, interval=2)
    values = []
    for overflowed in (True, True, False, False, False, False):
        scale.update(overflowed=overflowed)
        values.append(scale.value)
    assert values == [1.0, 1.0, 1.0, 2.0, 2.0, 4.0]


def scaled_engine(model, loss_scale):
    """An engine that scales the loss as it does in fp16, which no CPU trains in."""
    made = engine(model, max_grad_norm=0.5)
    made._loss_scale, made._scales_in_step = loss_scale, False
    return made


def test_the_loss_is_scaled_before_the_backward_pass():
    plain, scaled = tiny(), tiny()
    Wrapped(plain)(batch(1)).loss_sum.backward()
    made = scaled_engine(scaled, LossScale(value=8.0))
    output = made.forward_backward(batch=batch(1), scale=0.25, last=True)
    torch.testing.assert_close(output.loss_sum, Wrapped(plain)(batch(1)).loss_sum.detach())
    pairs = [(p.grad, q.grad) for p, q in zip(plain.parameters(), scaled.parameters(), strict=True)]
    used = [(expected, found) for expected, found in pairs if expected is not None]
    assert len(used) == len(pairs) - 1  # all but the matrix that no forward pass uses
    for expected, found in used:
        torch.testing.assert_close(found, expected * 8 * 0.25)


def test_a_loss_scale_changes_neither_the_gradients_norm_nor_the_step():
    plain, scaled = tiny(), tiny()
    windows = [[batch(10 * step + at) for at in range(2)] for step in range(3)]
    norms = train(engine(plain, max_grad_norm=0.5), windows)
    assert train(scaled_engine(scaled, LossScale(value=1024.0)), windows) == pytest.approx(norms, rel=1e-5)
    for expected, found in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_engine_halves_the_loss_scale_of_a_step_that_overflows():
    scale = LossScale(value=8.0, good_steps=5)
    made = scaled_engine(tiny(), scale)
    made.forward_backward(batch=batch(1, poison=float("inf")), scale=1.0, last=True)
    assert made.step(gradient_scale=1.0).skipped
    assert (scale.value, scale.good_steps) == (4.0, 0)
    train(made, [[batch(2)]])
    assert (scale.value, scale.good_steps) == (4.0, 1)


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def test_a_launch_is_read_from_torchruns_variables():
    assert read_launch({}) == Launch()
    assert read_launch({"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Launch()
    assert read_launch(TORCHRUN) == Launch(rank=1, world_size=2, local_rank=1)


@pytest.mark.parametrize(
    "change",
    [{"RANK": None}, {"WORLD_SIZE": None}, {"MASTER_ADDR": None}, {"RANK": "two"}, {"RANK": "2"}, {"WORLD_SIZE": "0"}],
    ids=str,
)
def test_a_launch_that_is_set_in_part_is_an_error(change):
    environ = {key: value for key, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(BumbleError) as caught:
        read_launch(environ)
    assert caught.value.problems[0].code == "BC067"


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", Launch()) == CPU
    with pytest.raises(BumbleError) as caught:
        choose_device("cuda", Launch())
    assert (caught.value.problems[0].code, caught.value.problems[0].field) == ("BC041", "engine.device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BumbleError, match="has 1 GPUs") as caught:
        choose_device("auto", Launch(rank=1, world_size=2, local_rank=1))
    assert caught.value.problems[0].code == "BC067"
