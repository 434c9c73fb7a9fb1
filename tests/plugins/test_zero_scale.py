"""DeepSpeed's gradients are scaled by way of its loss scale, which keeps what the step makes of it."""

import math
from types import SimpleNamespace

import pytest
import torch

from bumblecore_plugins.engines.zero_scale import scaled_gradients

SCALE, FACTOR = 1024.0, 0.25


def optimizer_of(**attributes):
    return SimpleNamespace(loss_scaler=SimpleNamespace(cur_scale=SCALE), **attributes)


@pytest.mark.parametrize("change", [1.0, 0.5, 2.0], ids=["kept", "halved after an overflow", "doubled"])
def test_a_step_divides_by_a_scale_that_holds_the_factor_and_its_change_of_the_scale_is_kept(change):
    gradient = torch.tensor([8.0])
    optimizer = optimizer_of(averaged_gradients={0: [gradient]})
    with scaled_gradients(optimizer, [], FACTOR):
        assert float(gradient) / optimizer.loss_scaler.cur_scale == 8.0 / SCALE * FACTOR
        optimizer.loss_scaler.cur_scale *= change
    assert optimizer.loss_scaler.cur_scale == SCALE * change
    assert float(gradient) == 8.0


def test_a_factor_of_1_changes_neither_the_scale_nor_the_gradients():
    gradient = torch.tensor([8.0])
    optimizer = optimizer_of(averaged_gradients={0: [gradient]})
    with scaled_gradients(optimizer, [], 1.0):
        assert (optimizer.loss_scaler.cur_scale, float(gradient)) == (SCALE, 8.0)


def test_stage_0_has_its_own_gradients_scaled():
    """It takes their norm before it divides by the loss scale."""
    used, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    used.grad = torch.tensor([8.0, -4.0])
    optimizer = optimizer_of()
    with scaled_gradients(optimizer, [used, unused], FACTOR):
        assert used.grad.tolist() == [2.0, -1.0]
        assert optimizer.loss_scaler.cur_scale == SCALE
    flat = SimpleNamespace(fp32_groups_gradients_flat=[torch.tensor([8.0]), torch.tensor([4.0])])
    with scaled_gradients(flat, [used, unused], FACTOR):
        assert torch.cat(flat.fp32_groups_gradients_flat).tolist() == [2.0, 1.0]
    assert used.grad.tolist() == [2.0, -1.0]


def test_a_factor_that_is_not_finite_has_the_step_skip_the_gradients():
    gradient = torch.tensor([8.0])
    optimizer = optimizer_of(averaged_gradients={0: [gradient], 1: None}, norm_for_param_grads={3: 5.0})
    with scaled_gradients(optimizer, [], math.nan):
        assert torch.isnan(gradient).all()
        assert optimizer.local_overflow
        assert math.isnan(optimizer.norm_for_param_grads[3])
        assert optimizer.loss_scaler.cur_scale == SCALE
