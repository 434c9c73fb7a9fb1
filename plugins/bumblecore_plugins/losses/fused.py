"""The cross entropy of the next token fused with the head: exact, and the full logits never exist.

Chunk by chunk (see `head_chunks`) the loss and the gradient with respect to the logits are computed, and two matrix
products then give the gradients of the hidden states and of the weight. All of this happens in the forward pass; the
backward pass only multiplies by the gradient of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from bumblecore_core import StepOutput
from bumblecore_core.toolkit.head_chunks import (
    Workspace,
    accumulates_wide,
    added_product,
    final_logits,
    logit_chunks,
    row_blocks,
)
from bumblecore_core.toolkit.policy import Head
from bumblecore_plugins.losses.naive import NaiveCausalLm, count_of, output


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the loss is made of: see `NaiveCausalLm` for the two options and `Head` for scale and soft cap."""

    scale: float = 1.0
    soft_cap: float | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0


@dataclass(kw_only=True)
class FusedCausalLm:
    """The same loss as `NaiveCausalLm`, computed in chunks of `chunk_tokens` (by memory when not set)."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        self._workspace = Workspace(chunk_tokens=self.chunk_tokens)
        self._naive = NaiveCausalLm(label_smoothing=self.label_smoothing, z_loss=self.z_loss)

    def __call__(
        self, *, hidden: torch.Tensor, head: Head, targets: torch.Tensor, weights: torch.Tensor | None = None
    ) -> StepOutput:
        """`hidden`: (N, H), or logits (N, V) with a head without weight; `targets`: (N,) int64; `weights`: (N,), None
        for ones. The sum over N of weight × loss, and the sum of the weights."""
        if head.weight is None:
            return self._naive(hidden=hidden, head=head, targets=targets, weights=weights)
        if head.weight.dtype == torch.float16 and torch.is_grad_enabled():
            return self._recomputed(hidden, head, targets, weights)
        terms = Terms(
            scale=head.scale, soft_cap=head.soft_cap, label_smoothing=self.label_smoothing, z_loss=self.z_loss
        )
        loss, nll, z_sum = _FusedHead.apply(  # type: ignore[no-untyped-call]
            hidden.to(head.weight.dtype),
            head.weight,
            head.bias,
            targets,
            weights,
            terms,
            self._workspace,
            torch.is_grad_enabled(),
        )
        return self._output(loss, nll, z_sum if self.z_loss else None, count_of(targets, weights))

    def _recomputed(
        self, hidden: torch.Tensor, head: Head, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> StepOutput:
        """float16: gradients of the logits underflow unless the loss is scaled first, which a gradient that is computed
        in the forward pass cannot know; so each chunk's logits are recomputed in the backward pass instead."""
        assert head.weight is not None
        step = self._workspace.tokens_per_chunk(targets.numel(), head.weight.shape[0], head.weight)
        loss = nll = z_sum = torch.zeros((), device=hidden.device)
        for start in range(0, max(1, targets.numel()), max(1, step)):
            kept = slice(start, start + step)
            factors = None if weights is None else weights[kept]
            part = checkpoint(self._naive_terms, hidden[kept], head, targets[kept], factors, use_reentrant=False)
            loss, nll, z_sum = loss + part[0], nll + part[1].detach(), z_sum + part[2].detach()
        return self._output(loss, nll, z_sum if self.z_loss else None, count_of(targets, weights))

    def _naive_terms(
        self, hidden: torch.Tensor, head: Head, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        part = self._naive(hidden=hidden, head=head, targets=targets, weights=weights)
        totals = {name: torch.as_tensor(metric.total) for name, metric in part.metrics.items()}
        z_sum = totals["z_loss"] / self.z_loss if self.z_loss else torch.zeros_like(part.loss_sum)
        return part.loss_sum, totals.get("nll", part.loss_sum), z_sum

    def _output(
        self, loss: torch.Tensor, nll: torch.Tensor, z_sum: torch.Tensor | None, count: int | torch.Tensor
    ) -> StepOutput:
        options_on = bool(self.label_smoothing or self.z_loss)
        return output(loss, nll, z_sum, count=count, z_loss=self.z_loss, options_on=options_on)


class _FusedHead(torch.autograd.Function):
    """(hidden (N, H), weight (V, H), bias (V,)) to (loss, nll, z) sums; gradients are computed with the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        token_weights: torch.Tensor | None,
        terms: Terms,
        workspace: Workspace,
        with_gradients: bool,
    ) -> tuple[torch.Tensor, ...]:
        needed = tuple(bool(with_gradients and need) for need in ctx.needs_input_grad[:3])
        sums, ctx.gradients = _run(hidden, weight, bias, targets, token_weights, terms, workspace, needed)
        ctx.mark_non_differentiable(sums[1], sums[2])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward through the fused head a second time: its gradients were handed over")
        gradients, ctx.gradients = ctx.gradients, None
        # On a CPU reading the scalar is free and usually saves a pass over the weight's gradient; elsewhere it syncs.
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:
            gradients = tuple(None if grad is None else grad.mul_(grad_loss) for grad in gradients)
        return (*gradients, None, None, None, None, None)


def _run(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    token_weights: torch.Tensor | None,
    terms: Terms,
    workspace: Workspace,
    needed: tuple[bool, ...],
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
    """The sums and, where `needed`, the gradients of (hidden, weight, bias) for a loss gradient of 1."""
    tokens, vocabulary = targets.numel(), weight.shape[0]
    wide = torch.promote_types(weight.dtype, torch.float32)
    statistics = torch.zeros(3, tokens, dtype=wide, device=hidden.device)
    factors = None if token_weights is None else token_weights.to(wide)
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if needed[0] else None
    grad_weight: torch.Tensor | None = None
    grad_bias = torch.zeros(vocabulary, dtype=wide, device=weight.device) if needed[2] and bias is not None else None
    for kept, logits in logit_chunks(hidden, weight, bias, workspace):
        _losses_and_logit_gradients(
            logits,
            targets[kept],
            None if factors is None else factors[kept],
            statistics[:, kept],
            grad_bias,
            terms,
            workspace,
            with_gradients=any(needed),
        )
        if grad_hidden is not None:
            torch.mm(logits, weight, out=grad_hidden[kept])
        if needed[1]:
            rounded = len(logits) == tokens and not accumulates_wide(weight)
            grad_weight = added_product(grad_weight, logits, hidden[kept], wide, rounded, workspace)
    if needed[1] and grad_weight is None:
        grad_weight = torch.zeros_like(weight)
    gradients = (grad_hidden, grad_weight, None if grad_bias is None or bias is None else grad_bias.to(bias.dtype))
    return tuple(statistics.sum(1).unbind()), gradients


def _losses_and_logit_gradients(
    logits: torch.Tensor,
    targets: torch.Tensor,
    factors: torch.Tensor | None,
    statistics: torch.Tensor,
    grad_bias: torch.Tensor | None,
    terms: Terms,
    workspace: Workspace,
    *,
    with_gradients: bool,
) -> None:
    """Writes loss, nll and squared logsumexp of each row, times its factor (n,), to `statistics` (3, n), and over
    `logits` (n, V) the gradient of the loss with respect to them (before scale and cap); adds its column sums to
    `grad_bias`."""
    vocabulary, wide = logits.shape[1], statistics.dtype
    smoothing = terms.label_smoothing
    for rows in row_blocks(logits, wide):
        raw, target = logits[rows], targets[rows, None]
        values = raw if raw.dtype == wide else workspace.buffer("block", raw.shape[0], vocabulary, raw, wide).copy_(raw)
        slope = final_logits(values, scale=terms.scale, soft_cap=terms.soft_cap, with_slope=with_gradients)
        picked = values.gather(1, target)
        mean = values.mean(1, keepdim=True) if smoothing else None
        peak = values.amax(1, keepdim=True)
        # The largest probability is 1 / sum(exp(x - peak)), so it gives the logsumexp without another pass of exp.
        softmax = torch.softmax(values, 1, out=values)
        lse = peak - softmax.amax(1, keepdim=True).log()
        nll = lse - picked
        loss = nll if mean is None else (1 - smoothing) * nll + smoothing * (lse - mean)
        statistics[0, rows] = (loss + terms.z_loss * lse**2 if terms.z_loss else loss)[:, 0]
        statistics[1, rows] = nll[:, 0]
        statistics[2, rows] = (lse**2)[:, 0]
        if factors is not None:
            statistics[:, rows].mul_(factors[rows])
        if not with_gradients:
            continue
        if terms.z_loss:
            softmax.mul_(1 + 2 * terms.z_loss * lse)
        if smoothing:
            softmax.sub_(smoothing / vocabulary)
        softmax.scatter_add_(1, target, torch.full_like(picked, smoothing - 1))
        if slope is not None:
            softmax.mul_(slope)
        if terms.scale != 1.0:
            softmax.mul_(terms.scale)
        if factors is not None:
            softmax.mul_(factors[rows, None])
        if grad_bias is not None:
            grad_bias.add_(softmax.sum(0))
        if values is not raw:
            raw.copy_(softmax)
