"""The engine's training state: every optimizer and schedule goes on to the bit, and takes up changed settings."""

import pytest
import torch
from engine_twin import adamw, batch, engine, tiny, train

from bumblecore_core import BumbleError
from bumblecore_core.registry import PluginSwitches, load_registry

WINDOWS = [[batch(10 * step + at, tokens=8 + at) for at in range(2)] for step in range(6)]
STOP = 3
REGISTRY = load_registry(PluginSwitches(builtins_only=True))
NEEDS = {"reduce_on_plateau": {"patience": 0}, "cosine_with_min_lr": {"min_lr_rate": 0.1}}


def built(kind, name, **given):
    record = REGISTRY.get(kind, name)
    wanted = {key: value for key, value in NEEDS.get(name, {}).items() if key in record.options.model_fields}
    return record.build(options=record.options(**wanted), **given)


def schedule(name, total=6):
    return lambda optimizer: built("schedulers", name, optimizer=optimizer, total_steps=total)


def steps(made, windows):
    norms = []
    for at, window in enumerate(windows):
        norms += train(made, [window])
        made.advance_schedule(metric=float(at % 2))  # what a plateau schedule steps on
        norms.append(made.learning_rates())
    return norms


def resumed_equals_whole(directory, **settings):
    whole_model = tiny()
    whole = engine(whole_model, **settings)
    first = steps(whole, WINDOWS[:STOP])
    whole.training_state(copy=True)(directory)
    saved = {name: tensor.clone() for name, tensor in whole_model.state_dict().items()}
    rest = steps(whole, WINDOWS[STOP:])
    assert first != rest

    model = tiny(seed=9)
    model.load_state_dict({name: tensor.float() for name, tensor in saved.items()})
    again = engine(model, **settings)
    again.load_training_state(directory=directory.parent)
    assert steps(again, WINDOWS[STOP:]) == rest
    found = model.state_dict()
    for name, expected in whole_model.state_dict().items():
        assert expected.dtype == found[name].dtype
        assert torch.equal(expected, found[name]), name


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "rank-0").mkdir()
    return tmp_path / "rank-0"


@pytest.mark.parametrize("dtype", [{"dtype": "fp32"}, {"dtype": "bf16"}, {"dtype": "bf16", "master_weights": False}])
@pytest.mark.parametrize("name", REGISTRY.names("optimizers"))
def test_every_optimizer_goes_on_to_the_bit(name, dtype, directory):
    make = lambda groups: built("optimizers", name, groups=groups)  # noqa: E731
    resumed_equals_whole(directory, make_optimizer=make, **dtype)


@pytest.mark.parametrize("name", REGISTRY.names("schedulers"))
def test_every_schedule_goes_on_to_the_bit(name, directory):
    resumed_equals_whole(directory, make_scheduler=schedule(name))


class WideState(torch.optim.SGD):
    """An optimizer of a plugin: bf16 weights, float32 state, and more of it in the groups."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
            for parameter in (one for one in group["params"] if one.grad is not None):
                state = self.state[parameter]
                state["sum"] = state.get("sum", torch.zeros_like(parameter, dtype=torch.float32)) + parameter.grad
                parameter.data.sub_((state["sum"] * 1e-3 / group["seen"]).to(parameter.dtype))


def test_state_wider_than_the_weights_keeps_its_bits(directory):
    make = lambda groups: WideState([{"params": g.params, "name": g.name} for g in groups], lr=1e-3)  # noqa: E731
    resumed_equals_whole(directory, make_optimizer=make, dtype="bf16", master_weights=False)


def test_a_changed_rate_and_horizon_are_taken_up_and_the_rest_goes_on(directory):
    made = engine(tiny(), make_scheduler=schedule("linear"))
    steps(made, WINDOWS[:STOP])
    made.training_state(copy=False)(directory)
    changed = engine(tiny(), make_optimizer=lambda of: adamw(of, lr=0.02), make_scheduler=schedule("linear", total=12))
    changed.load_training_state(directory=directory.parent)
    assert changed.learning_rates() == {"decay": 0.02 * 9 / 12, "no_decay": 0.02 * 9 / 12}
    moments = [state["exp_avg"] for state in changed._optimizer.state.values()]
    assert all(torch.equal(a, b["exp_avg"]) for a, b in zip(moments, made._optimizer.state.values(), strict=True))


def test_a_copy_does_not_change_with_training(directory):
    made = engine(tiny())
    steps(made, WINDOWS[:1])
    write = made.training_state(copy=True)
    write(directory)
    before = (directory / "engine.safetensors").read_bytes()
    steps(made, WINDOWS[1:2])
    write(directory)
    assert (directory / "engine.safetensors").read_bytes() == before


def test_the_loss_scale_goes_on(directory):
    from bumblecore_plugins.engines.precision import LossScale
    from bumblecore_plugins.engines.torch_state import TorchState

    def state(scale):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return TorchState(
            parameters=[("w", weight, weight)], optimizer=optimizer, scheduler=scheduler, loss_scale=scale
        )

    state(LossScale(value=512.0, good_steps=7)).writer(copy=False)(directory)
    fresh = LossScale()
    state(fresh).load(directory)
    assert (fresh.value, fresh.good_steps) == (512.0, 7)


def test_the_state_of_other_parameters_is_refused(directory):
    made = engine(tiny())
    made.training_state(copy=False)(directory)
    names = (directory / "engine.json").read_text()
    (directory / "engine.json").write_text(names.replace('"head.bias"', '"other"').replace('"first.weight"', '"other"'))
    with pytest.raises(BumbleError, match="BC047"):
        engine(tiny()).load_training_state(directory=directory.parent)
