"""Log-probabilities of chosen tokens, fused with the head: exact, differentiable, and the full logits never exist."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bumblecore_core.toolkit.head_chunks import (
    Workspace,
    accumulates_wide,
    added_product,
    final_logits,
    logit_chunks,
    row_blocks,
)
from bumblecore_core.toolkit.policy import Head


@dataclass
class TokenLogprobs:
    """log p(target | context) of N positions. What a preference loss makes of them is not known in the forward pass, so
    where the head is trained its logits are computed again in the backward pass (a fourth matrix product, instead of
    N × V numbers kept). Where only the hidden states need a gradient, as with an adapter, it is computed in the forward
    pass for each position, and multiplied by what comes back."""

    workspace: Workspace = field(default_factory=Workspace)

    def __call__(self, *, hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
        """`hidden`: (N, H), or logits (N, V) with a head without weight; `targets`: (N,) int64. (N,) float32, or
        float64 where the weights are."""
        if head.weight is None:
            return naive_logprobs(hidden=hidden, head=head, targets=targets)
        found: torch.Tensor = _FusedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden.to(head.weight.dtype), head.weight, head.bias, targets, head, self.workspace, torch.is_grad_enabled()
        )
        return found


def naive_logprobs(*, hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    """The same over the full logits, as one would write it down."""
    logits = head.logits(hidden)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide, dim=-1).gather(1, targets[:, None])[:, 0]


class _FusedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
        workspace: Workspace,
        with_gradients: bool,
    ) -> torch.Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        needs = tuple(bool(with_gradients and need) for need in ctx.needs_input_grad[:3])
        # In fp16 an unscaled gradient of a logit can underflow: it is left to the backward pass, after the loss scale.
        at_once = needs == (True, False, False) and weight.dtype != torch.float16
        found = torch.empty(len(targets), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if at_once else None
        for kept, logits in logit_chunks(hidden, weight, bias, workspace):
            for block in row_blocks(logits, wide):
                rows = slice(kept.start + block.start, kept.start + block.stop)
                values, slope = _values(logits[block], wide, head, workspace, with_slope=at_once)
                picked, peak = values.gather(1, targets[rows, None]), values.amax(1, keepdim=True)
                # The largest probability is 1 / sum(exp(x - peak)): the logsumexp without a pass of exp of its own.
                softmax = torch.softmax(values, 1, out=values)
                found[rows] = (picked - peak + softmax.amax(1, keepdim=True).log())[:, 0]
                if at_once:
                    ones = torch.ones_like(found[rows])
                    logits[block] = _logit_gradient(softmax, slope, targets[rows], ones, head)
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[kept])
        ctx.needs, ctx.head, ctx.workspace = needs, head, workspace
        ctx.save_for_backward(*((grad_hidden,) if at_once else (hidden, weight, bias, targets)))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        if len(ctx.saved_tensors) == 1:
            (grad_hidden,) = ctx.saved_tensors
            return (grad_hidden * grad[:, None].to(grad_hidden.dtype), *[None] * 6)
        hidden, weight, bias, targets = ctx.saved_tensors
        wide = grad.dtype
        grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if ctx.needs[0] else None
        grad_weight: torch.Tensor | None = None
        grad_bias = torch.zeros(len(weight), dtype=wide, device=weight.device) if ctx.needs[2] else None
        for kept, logits in logit_chunks(hidden, weight, bias, ctx.workspace):
            for block in row_blocks(logits, wide):
                rows = slice(kept.start + block.start, kept.start + block.stop)
                values, slope = _values(logits[block], wide, ctx.head, ctx.workspace, with_slope=True)
                softmax = torch.softmax(values, 1, out=values)
                gradient = _logit_gradient(softmax, slope, targets[rows], grad[rows], ctx.head)
                if grad_bias is not None:
                    grad_bias.add_(gradient.sum(0))
                logits[block] = gradient
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[kept])
            if ctx.needs[1]:
                rounded = len(logits) == len(targets) and not accumulates_wide(weight)
                grad_weight = added_product(grad_weight, logits, hidden[kept], wide, rounded, ctx.workspace)
        if ctx.needs[1] and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        return grad_hidden, grad_weight, None if grad_bias is None else grad_bias.to(bias.dtype), *[None] * 4


def _values(
    raw: torch.Tensor, wide: torch.dtype, head: Head, workspace: Workspace, *, with_slope: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A block's logits in `wide`, and the slope of their soft cap."""
    values = workspace.buffer("block", raw.shape[0], raw.shape[1], raw, wide).copy_(raw)
    return values, final_logits(values, scale=head.scale, soft_cap=head.soft_cap, with_slope=with_slope)


def _logit_gradient(
    softmax: torch.Tensor, slope: torch.Tensor | None, targets: torch.Tensor, grad: torch.Tensor, head: Head
) -> torch.Tensor:
    """grad · (1 at the target − softmax), with respect to the head's product; over `softmax`."""
    gradient = softmax.mul_(-grad[:, None])
    gradient.scatter_add_(1, targets[:, None], grad[:, None].to(gradient.dtype))
    if slope is not None:
        gradient.mul_(slope)
    return gradient.mul_(head.scale) if head.scale != 1.0 else gradient
