"""Float16 steps of the engine `torch`: loss scale, overflow and float32 masters, against the same step in float32.

A run refuses float16 on a CPU, where it is slow; the arithmetic is the same there.
"""

import math

import pytest
import torch
from engine_twin import Wrapped, batch, engine, groups, tiny

from bumblecore_plugins.engines import torch_engine

SCALE = 2.0**-20  # of the loss: makes gradients that float16 cannot hold unless the loss scale comes first
RATE = 2.0**20  # of the optimizer: makes such a gradient a change that float32 masters show
NORM = 4.16e-5  # of the window's gradients, about


@pytest.fixture(autouse=True)
def _float16(monkeypatch):
    monkeypatch.setattr(torch_engine, "resolve_dtype", lambda *_, **__: (torch.float16, "in a test"))


def sgd(of):
    return torch.optim.SGD([{"params": group.params, "name": group.name} for group in of], lr=RATE)


def step(made, *, scale=SCALE, infinite=False):
    """A step of two micro-batches; `infinite`: one gradient of the second is so."""
    for at in range(2):
        made.forward_backward(batch=batch(at, tokens=8 + 3 * at), scale=scale, last=at == 1)
    if infinite:
        made._module.model.first.weight.grad[1, 2] = math.inf
    return made.step(gradient_scale=0.5)


def float32_step(model, limit):
    """The same step without anything of float16 but the weights' rounding; (norm before clipping, changes)."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    losses = [Wrapped(model)(batch(at, tokens=8 + 3 * at)).loss_sum for at in range(2)]
    (sum(losses) * SCALE * 0.5).backward()
    used = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(used, math.inf if limit is None else limit)
    return float(norm), [RATE * parameter.grad if parameter.grad is not None else None for parameter in by_group(model)]


def by_group(model):
    return [parameter for group in groups(model) for parameter in group.params]


@pytest.mark.parametrize("float32_gradients", [True, False])
@pytest.mark.parametrize("limit", [None, NORM / 8, NORM * 8])
def test_a_gradient_too_small_for_float16_reaches_the_masters_unscaled_and_clipped(float32_gradients, limit):
    model = tiny()
    made = engine(model, make_optimizer=sgd, float32_gradients=float32_gradients, max_grad_norm=limit)
    before = [master.detach().clone() for _, master in made._pairs]
    result = step(made)
    norm, changes = float32_step(tiny(), limit)
    assert norm == pytest.approx(NORM, rel=0.05)
    assert result.grad_norm == pytest.approx(norm, rel=2e-3)
    assert not result.skipped
    largest = max(float(change.abs().max()) for change in changes if change is not None)
    for (weight, master), old, change in zip(made._pairs, before, changes, strict=True):
        assert (weight.dtype, master.dtype) == (torch.float16, torch.float32)
        assert torch.equal(weight, master.half())
        if change is None:
            assert torch.equal(master, old)
        else:
            torch.testing.assert_close(old - master, change, rtol=5e-3, atol=2e-3 * largest)


def test_masters_are_the_weights_before_they_were_rounded():
    model = tiny()
    plain = [parameter.detach().clone() for parameter in by_group(model)]
    made = engine(model)
    for (weight, master), before in zip(made._pairs, plain, strict=True):
        assert weight.dtype == torch.float16
        assert torch.equal(master, before)


def test_an_infinite_gradient_skips_the_step_and_halves_the_loss_scale():
    model = tiny()
    made = engine(model)
    step(made)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {key: value.clone() for key, value in made._optimizer.state[made._pairs[0][1]].items()}
    for halved in (2.0**15, 2.0**14):
        result = step(made, infinite=True)
        assert (result.skipped, result.grad_norm) == (True, math.inf)
        assert made._loss_scale.value == halved
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert state
    assert all(torch.equal(value, made._optimizer.state[made._pairs[0][1]][key]) for key, value in state.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not step(made).skipped


def test_a_loss_scale_that_overflows_falls_until_a_step_is_made_and_then_grows():
    made = engine(tiny(), make_optimizer=lambda of: torch.optim.SGD([p for g in of for p in g.params], lr=0.0))
    made._loss_scale.interval = 2
    results = [step(made, scale=4.0) for _ in range(16)]
    skips = [result.skipped for result in results].index(False)
    assert skips > 1
    assert all(not math.isfinite(result.grad_norm) for result in results[:skips])
    found = [result.skipped for result in results[skips:]]
    assert len(found) > 3
    assert found == ([False, False, True] * 4)[: len(found)]  # two good steps, then twice the scale overflows again
    norms = [result.grad_norm for result in results[skips:] if not result.skipped]
    assert norms == pytest.approx([4.0 * NORM / SCALE] * len(norms), rel=0.05)


def test_the_loss_scale_is_that_of_the_configured_dtype(monkeypatch):
    assert dict(engine(tiny()).features())["loss scale"] == "dynamic, from 65536"
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(torch_engine, "resolve_dtype", lambda *_, dtype=dtype, **__: (dtype, "in a test"))
        made = engine(tiny())
        assert made._loss_scale is None
        assert "loss scale" not in dict(made.features())
