"""When gradient buckets are sent, with the collective replaced by a recorder (as if another rank held the same)."""

from __future__ import annotations

import pytest
import torch

from bumblecore_core import BumbleError
from bumblecore_plugins.engines import gradient_sync
from bumblecore_plugins.engines.gradient_sync import GradientSync


class Work:
    def wait(self) -> None:
        pass


@pytest.fixture
def sent(monkeypatch) -> list[int]:
    """Sizes of what was sent, in order; each element arrives doubled."""
    sizes: list[int] = []

    def all_reduce(tensor, async_op):
        assert async_op
        sizes.append(tensor.numel())
        tensor.mul_(2)
        return Work()

    monkeypatch.setattr(gradient_sync.dist, "all_reduce", all_reduce)
    return sizes


def parameters(*sizes: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(size)) for size in sizes]


def test_buckets_go_out_during_backward_last_parameters_first(sent):
    first, second, third = parameters(2, 3, 4)
    sync = GradientSync([first, second, third], bucket_bytes=16)
    seen_at_first: list[list[int]] = []
    first.register_post_accumulate_grad_hook(lambda _: seen_at_first.append(list(sent)))
    sync.arm()
    (((first.sum() * second).sum() * third).sum()).backward()
    assert sent == [5, 7]  # `third`, then `second` with `first`; one flag for each parameter
    sync.finish()
    assert sent == [5, 7]
    assert torch.equal(third.grad, torch.full((4,), 2.0 * 6))
    assert torch.equal(first.grad, torch.full((2,), 2.0 * 12))


def test_buckets_keep_their_order_whatever_comes_first(sent):
    first, second = parameters(2, 3)
    sync = GradientSync([first, second], bucket_bytes=1)
    sync.arm()
    first.sum().backward()
    assert sent == []  # `second`'s bucket is the first, and its gradient is not there yet
    second.sum().backward()
    assert sent == [4, 3]
    sync.finish()


def test_nothing_is_sent_before_the_windows_last_backward(sent):
    (weight,) = parameters(3)
    sync = GradientSync([weight], bucket_bytes=1)
    (2 * weight).sum().backward()
    assert sent == []
    sync.arm()
    weight.sum().backward()
    assert sent == [4]
    sync.finish()
    assert torch.equal(weight.grad, torch.full((3,), 6.0))


def test_a_rank_without_any_gradient_sends_as_many_buckets_and_unused_ones_stay_none(sent):
    first, second = parameters(2, 3)
    sync = GradientSync([first, second], bucket_bytes=1)
    first.grad = torch.ones(2)
    sync.arm()
    sync.send_rest()
    assert sent == [4, 3]
    sync.finish()
    assert second.grad is None
    assert torch.equal(first.grad, torch.full((2,), 2.0))


def test_half_precision_weights_send_float32_gradients_in_buckets_of_their_own(sent):
    half = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    half.grad_dtype = torch.float32
    pure = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    sync = GradientSync([half, pure], bucket_bytes=1e9)
    sync.arm()
    (half.sum() + pure.sum()).backward()
    sync.finish()
    assert len(sent) == 2
    assert (half.grad.dtype, pure.grad.dtype) == (torch.float32, torch.bfloat16)


def test_a_second_backward_after_the_send_is_caught(sent):
    (weight,) = parameters(3)
    sync = GradientSync([weight], bucket_bytes=1)
    sync.arm()
    weight.sum().backward()
    weight.sum().backward()
    with pytest.raises(BumbleError, match="after its bucket was sent"):
        sync.finish()
