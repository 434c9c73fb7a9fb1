"""Steps of the engine `deepspeed` at every stage against the engine `torch`: scaling, clipping, skipping, masters."""

import gc
import importlib
import math

import pytest
import torch
from engine_twin import Wrapped, adamw, batch, groups, tiny

import zero_runs
from bumblecore_core import ConfigError, EngineContext, ModelError
from bumblecore_plugins.engines import DeepSpeedOptions, TorchOptions
from bumblecore_plugins.engines.deepspeed_engine import DeepSpeedEngine
from bumblecore_plugins.engines.torch_engine import TorchEngine

STAGES = (0, 1, 2, 3)
OFFLOADED = [(1, "cpu"), (2, "cpu"), (3, "cpu")]
ALL = [*STAGES, *OFFLOADED]
"""A stage, or a stage and where everything goes that it can offload."""
DTYPES = ("fp32", "bf16")


@pytest.fixture(autouse=True, scope="module")
def _imports_are_no_garbage():
    """DeepSpeed collects garbage at many points. Without what imports made, a collection takes no time."""
    for module in ("torch._dynamo", *zero_runs.IMPORTS):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def engine_of(stage, dtype="fp32", **context):
    """An engine of the tiny model; `stage` None is the engine torch."""
    made = EngineContext(dtype=dtype, gradient_accumulation_steps=2, **context)
    if stage is None:
        engine = TorchEngine(options=TorchOptions(device="cpu"), context=made)
    else:
        number, device = stage if isinstance(stage, tuple) else (stage, "none")
        weights = device if number == 3 else "none"
        options = DeepSpeedOptions(
            device="cpu", zero_stage=number, offload_optimizer=device, offload_parameters=weights
        )
        engine = DeepSpeedEngine(options=options, context=made)
    model = tiny()
    engine.prepare(module=Wrapped(model), groups=groups(model), make_optimizer=adamw, make_scheduler=constant)
    return engine


def window(engine, *, gradient_scale=1.0, poison=None, shares=(1.0, 1.0)):
    """Two micro-batches of different lengths and a step. `shares` of a layer in each: see `Tiny`."""
    for at, tokens in enumerate((12, 7)):
        given = batch(at, tokens, poison if at else None)
        engine._module.model.share = shares[at]
        engine.forward_backward(batch=given, scale=1 / 17, last=at == 1)
    return engine.step(gradient_scale=gradient_scale)


def weights(engine):
    return {name: tensor.float().clone() for name, tensor in engine.model_state().items()}


def assert_close(found, expected, dtype):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if name.startswith("unused"):
            continue  # DeepSpeed gives it a gradient of zero, so that it decays; torch leaves it alone
        if dtype == "fp32":
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        else:  # Adam turns the rounding of a small gradient into a step of another length
            wrong = (tensor - expected[name]).abs() > 2e-3 + 1e-2 * expected[name].abs()
            assert wrong.sum() <= max(1, 0.04 * wrong.numel())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", ALL)
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("limit", [None, 0.05])
def test_three_steps_are_those_of_the_engine_torch(stage, dtype, scale, limit):
    one, other = engine_of(None, dtype, max_grad_norm=limit), engine_of(stage, dtype, max_grad_norm=limit)
    try:
        for _ in range(3):
            expected, found = window(one, gradient_scale=scale), window(other, gradient_scale=scale)
            assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5 if dtype == "fp32" else 0.03)
            assert not found.skipped
        assert_close(weights(other), weights(one), dtype)
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", ALL)
@pytest.mark.parametrize(("scale", "poison"), [(math.nan, None), (1.0, math.inf)])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_works(stage, dtype, scale, poison):
    engine, alone = engine_of(stage, dtype), engine_of(stage, dtype)
    try:
        window(engine)
        before = weights(engine)
        result = window(engine, gradient_scale=scale, poison=poison)
        assert result.skipped
        assert not math.isfinite(result.grad_norm)
        assert_equal(weights(engine), before)
        assert not window(engine).skipped
        window(alone), window(alone)
        assert_equal(weights(engine), weights(alone))
    finally:
        engine.close()
        alone.close()


@pytest.mark.parametrize("stage", ALL)
def test_masters_are_the_weights_before_they_were_rounded(stage):
    engine, plain = engine_of(stage, "bf16"), dict(tiny().named_parameters())
    try:
        seen = {name: torch.full((parameter.numel(),), math.nan) for name, parameter in plain.items()}
        for part in (part for _, parts in engine._state._owners for part in parts):
            assert part.values.dtype == torch.float32
            seen[part.name][part.start : part.start + part.length] = part.values
        for name, parameter in plain.items():
            assert torch.equal(seen[name], parameter.detach().flatten())
        assert all(tensor.dtype == torch.bfloat16 for name, tensor in engine.model_state().items() if name in plain)
        assert engine.model_state()["frequencies"].dtype == torch.float32
    finally:
        engine.close()


@pytest.mark.parametrize("stage", ALL)
def test_a_weight_that_is_not_used_in_a_micro_batch_has_a_gradient_of_zero_there(stage):
    one, other = engine_of(None), engine_of(stage)
    try:
        for used in ((1, 1), (0, 0), (0, 1), (1, 0), (1, 1)):
            expected = window(one, shares=[float(share) for share in used])
            found = window(other, shares=[float(share) or None for share in used])
            assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert_close(weights(other), weights(one), "fp32")
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize("stage", ALL)
def test_nothing_of_making_the_engine_is_left_in_the_optimizer(stage):
    engine = engine_of(stage, "bf16")
    try:
        assert not any(engine._optimizer.state.values())
        assert engine.learning_rates() == {"decay": 0.01, "no_decay": 0.01}
    finally:
        engine.close()


def test_a_buffer_keeps_its_dtype_and_tied_weights_one_entry():
    engine = engine_of(3, "bf16")
    try:
        state = engine.model_state()
        assert state["head.weight"] is state["embedding.weight"]
        assert set(engine.model_state(wanted=lambda name: name.startswith("first"))) == {"first.weight", "first.bias"}
    finally:
        engine.close()


def test_what_zero_cannot_do_is_refused():
    with pytest.raises(ConfigError, match=r"BC039.*float32 masters"):
        engine_of(2, "bf16", master_weights=False)
    model = tiny()
    engine = DeepSpeedEngine(options=DeepSpeedOptions(device="cpu"), context=EngineContext(dtype="fp32"))
    try:
        with pytest.raises(ConfigError, match=r"BC039.*adafactor"):
            engine.prepare(
                module=Wrapped(model),
                groups=groups(model),
                make_optimizer=lambda of: torch.optim.Adafactor([{"params": group.params} for group in of]),
                make_scheduler=constant,
            )
        with pytest.raises(ModelError, match="BC031"):
            engine.prepare(module=Wrapped(model), groups=[], make_optimizer=adamw, make_scheduler=constant)
    finally:
        engine.close()
