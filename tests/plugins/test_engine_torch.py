"""The engine `torch` on one process, against the same training written out naively."""

from __future__ import annotations

import math

import pytest
import torch
from engine_twin import Wrapped, adamw, batch, engine, groups, naive, tiny, train
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bumblecore_core import BumbleError, EngineContext
from bumblecore_plugins.engines import TorchOptions, bumble_engines

WINDOWS = [[batch(10 * step + at, tokens=8 + 3 * at) for at in range(3)] for step in range(5)]


def gradients(model, windows_of: list[int]) -> dict[str, torch.Tensor]:
    """What the optimizer sees when the same six batches are split into micro-batches of the given sizes."""
    seen = {}
    rows = [batch(seed, tokens=7 + seed) for seed in range(6)]

    def make(of):
        optimizer = torch.optim.SGD([{"params": g.params, "name": g.name} for g in of], lr=1.0)
        names = {p.data_ptr(): name for name, p in model.named_parameters()}
        optimizer.register_step_pre_hook(
            lambda o, *_: seen.update(
                {names[p.data_ptr()]: p.grad.clone() for g in o.param_groups for p in g["params"] if p.grad is not None}
            )
        )
        return optimizer

    made = engine(model, make_optimizer=make)
    count, start = sum(row.count for row in rows), 0
    module = made._module
    for at, size in enumerate(windows_of):
        part, start = rows[start : start + size], start + size
        made._module = lambda parts: _sum_of(module, parts)
        made.forward_backward(batch=_Many(part), scale=1.0 / count, last=at == len(windows_of) - 1)
    made._module = module
    made.step(gradient_scale=1.0)
    return seen


class _Many(list):
    def to(self, device):
        return self


def _sum_of(module, parts):
    outputs = [module(part) for part in parts]
    outputs[0].loss_sum = sum(output.loss_sum for output in outputs)
    return outputs[0]


@pytest.mark.parametrize("split", [[1] * 6, [2, 2, 2], [3, 3], [4, 2]], ids=str)
def test_any_split_of_the_window_gives_the_same_gradients(split):
    whole, parts = gradients(tiny(), [6]), gradients(tiny(), split)
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_five_steps_equal_the_naive_loop_bit_for_bit(dtype):
    ours, twin = tiny(), tiny()
    made = engine(ours, dtype=dtype)
    train(made, WINDOWS)
    half = None if dtype == "fp32" else torch.bfloat16
    naive(twin, WINDOWS, half=half)
    stepped = dict(zip((id(weight) for weight, _ in made._pairs), (master for _, master in made._pairs), strict=True))
    for (name, parameter), (_, expected) in zip(ours.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(stepped[id(parameter)], expected), name
        assert torch.equal(parameter, expected.to(half or torch.float32)), name
        assert parameter.grad is None


def test_masters_hold_the_initialisation_unrounded_and_buffers_stay_float32():
    model = tiny()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    made = engine(model, dtype="bf16")
    masters = {id(weight): master for weight, master in made._pairs}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(masters[id(parameter)], before[name])
    assert model.frequencies.dtype == torch.float32
    assert model.head.weight is model.embedding.weight
    assert len(made._pairs) == len(before)


def test_parameters_that_the_model_keeps_in_float32_stay_so():
    model = tiny()
    model._keep_in_fp32_modules_strict = {"norm"}
    engine(model, dtype="bf16")
    assert (model.norm.weight.dtype, model.first.weight.dtype) == (torch.float32, torch.bfloat16)


def test_frozen_weights_are_cast_and_get_no_master():
    model = tiny()
    model.unused.weight.requires_grad = False
    made = engine_of_trainable(model)
    assert model.unused.weight.dtype == torch.bfloat16
    assert all(weight is not model.unused.weight for weight, _ in made._pairs)


def engine_of_trainable(model):
    from bumblecore_plugins.engines.torch_engine import TorchEngine

    made = TorchEngine(options=TorchOptions(device="cpu"), context=EngineContext(dtype="bf16"))
    trainable = groups(model)
    trainable[0].params = [parameter for parameter in trainable[0].params if parameter.requires_grad]
    made.prepare(
        module=Wrapped(model),
        groups=trainable,
        make_optimizer=adamw,
        make_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1.0),
    )
    return made


@pytest.mark.parametrize("float32_gradients", [True, False])
@pytest.mark.parametrize("master_weights", [True, False])
def test_each_switch_of_half_precision_trains_and_keeps_its_dtypes(master_weights, float32_gradients):
    model = tiny()
    before = model.first.weight.detach().clone()
    made = engine(model, dtype="bf16", master_weights=master_weights, float32_gradients=float32_gradients)
    made.forward_backward(batch=batch(1), scale=0.1, last=True)
    assert model.first.weight.grad.dtype == (torch.float32 if float32_gradients else torch.bfloat16)
    made.step(gradient_scale=1.0)
    state = made._optimizer.state[next(target for weight, target in made._pairs if weight is model.first.weight)]
    assert state["exp_avg"].dtype == (torch.float32 if master_weights else torch.bfloat16)
    assert model.first.weight.dtype == torch.bfloat16
    assert not torch.equal(model.first.weight, before.bfloat16())
    assert model.first.weight.grad is None


def test_float32_accumulation_keeps_what_bf16_would_drop():
    """256 gradients of 1/256: in bf16 a sum of 1 stops growing in steps that small, in float32 it does not."""
    grown = {}
    for exact in (True, False):
        model = tiny()
        made = engine(model, dtype="bf16", float32_gradients=exact)
        for _ in range(600):
            model.second.weight.grad = model.second.weight.grad  # as autograd leaves it
            (model.second.weight.sum() / 256).backward()
        grown[exact] = model.second.weight.grad.float().mean().item()
        made.close()
    assert grown[True] == pytest.approx(600 / 256, rel=1e-6)
    assert grown[False] <= 1.5


@pytest.mark.parametrize("limit", [1e-3, 1e3, None])
def test_clipping_scales_to_the_limit_and_reports_the_norm_before(limit):
    ours, twin = tiny(), tiny()
    made = engine(ours, make_optimizer=plain_sgd, max_grad_norm=limit)
    made.forward_backward(batch=batch(1), scale=1.0, last=True)
    result = made.step(gradient_scale=0.25)
    (Wrapped(twin)(batch(1)).loss_sum * 0.25).backward()
    parameters = [parameter for parameter in twin.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit is not None else math.inf)
    plain_sgd(groups(twin)).step()
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert not result.skipped
    for parameter, expected in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)


def plain_sgd(of):
    return torch.optim.SGD([{"params": g.params, "name": g.name} for g in of], lr=0.1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("how", ["loss", "scale"])
def test_what_is_not_finite_updates_nothing(dtype, how):
    model = tiny()
    made = engine(model, dtype=dtype, max_grad_norm=1.0)
    train(made, WINDOWS[:1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in made._optimizer.state.values()]
    poison = float("nan") if how == "loss" else None
    made.forward_backward(batch=batch(1, poison=poison), scale=1.0, last=True)
    result = made.step(gradient_scale=1.0 if how == "loss" else float("nan"))
    assert result.skipped
    assert not math.isfinite(result.grad_norm)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(a["exp_avg"], b) for a, b in zip(made._optimizer.state.values(), moments, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not math.isnan(train(made, WINDOWS[1:2])[0])


def test_a_filler_changes_nothing_even_where_it_is_not_finite():
    plain, filled = tiny(), tiny()
    norms = train(engine(plain), [[batch(1), batch(2)]])
    assert train(engine(filled), [[batch(1), batch(2), None]]) == norms
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), filled.parameters(), strict=True))


def test_evaluation_is_without_dropout_and_gradients_and_restores_training():
    model = tiny(dropout=0.5)
    made = engine(model)
    first, second = (made.evaluate(batch=batch(1)).loss_sum for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert model.training
    noisy = [made.forward_backward(batch=batch(1), scale=1.0, last=True).loss_sum for _ in range(2)]
    assert not torch.equal(*noisy)
    assert not noisy[0].requires_grad


def test_learning_rates_by_group_and_schedules_step():
    halving = lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step)  # noqa: E731
    made = engine(tiny(), make_scheduler=halving)
    train(made, WINDOWS[:2])
    assert made.learning_rates() == {"decay": 0.0025, "no_decay": 0.0025}
    made.advance_schedule(metric=1.0)
    assert made.learning_rates()["decay"] == 0.0025


def test_a_plateau_schedule_steps_on_metrics_alone():
    made = engine(tiny(), make_scheduler=lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0))
    train(made, WINDOWS[:3])
    assert made.learning_rates()["decay"] == 0.01
    made.advance_schedule(metric=1.0)
    made.advance_schedule(metric=2.0)
    assert made.learning_rates()["decay"] == 0.005


def test_model_state_has_the_inner_names_and_the_tied_weight_once_in_memory():
    model = tiny()
    state = engine(model, dtype="bf16").model_state()
    assert state.keys() == model.state_dict().keys()
    assert state["first.weight"].dtype == torch.bfloat16
    assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()


def test_only_the_wanted_weights_are_handed_out():
    state = engine(tiny()).model_state(wanted=lambda name: name.startswith("first"))
    assert state.keys() == {"first.weight", "first.bias"} & tiny().state_dict().keys()
    assert state


def test_one_process_sums_to_itself():
    made = engine(tiny())
    assert made.sum_over_ranks([1.5, 2]) == [1.5, 2.0]
    made.barrier()
    made.close()
    made.close()


def test_nothing_trainable_is_an_error():
    model = tiny().requires_grad_(False)
    made = bumble_engines()[0].build(options=TorchOptions(device="cpu"), context=EngineContext(dtype="fp32"))
    with pytest.raises(BumbleError, match="no parameter of the model is trainable"):
        made.prepare(module=Wrapped(model), groups=[], make_optimizer=adamw, make_scheduler=lambda o: None)


def test_the_summary_says_what_was_decided():
    features = dict(engine(tiny(), dtype="bf16").features())
    assert features["dtype"] == "bf16 (as configured)" or "emulated" in features["dtype"]
    assert features["master weights"] == "float32"
    assert features["gradients"] == "float32"
    assert "cpu" in features["device"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_model_computes_as_the_trained_one_does_before_the_first_step(dtype):
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    trained, reference = engine(tiny(), dtype=name), tiny()
    call = trained.frozen(module=Wrapped(reference))
    assert not call(batch(1)).loss_sum.requires_grad
    assert torch.equal(call(batch(1)).loss_sum, trained.evaluate(batch=batch(1)).loss_sum)
    assert {parameter.dtype for parameter in reference.parameters()} == {dtype}
    assert reference.frequencies.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in reference.parameters())
