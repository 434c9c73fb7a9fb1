"""Checks of losses: the sum, the count, and what both do when a batch is split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from bumblecore_core.toolkit.token_weights import accepts_weights, same_count
from bumblecore_core.values import Metric, Reduction, StepOutput

if TYPE_CHECKING:
    import torch


def check_token_loss(
    loss: Any,
    *,
    positions: int = 12,
    hidden_size: int = 8,
    vocabulary: int = 32,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Raises `AssertionError` unless a built token loss (of `build(options=…)`) keeps its contract on float32 input:

    - it returns a scalar float32 *sum* and the number of positions as count;
    - sum, count, additive metrics and gradients of two parts add up to those of the whole (relative `tolerance`), so
      that gradient accumulation is exact, and gradients follow the factor that the core multiplies the sum with;
    - no position at all gives 0 with finite gradients;
    - with `weights`, if it accepts them: ones change nothing, a position with the weight 0 is like one left out, twice
      the weights give twice the sum, count, means' totals and gradients, and parts still add up;
    - it takes a head without weight (`hidden` are then logits), works without gradients, and leaves its input alone.
    """
    import torch

    from bumblecore_core.toolkit.policy import Head

    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, hidden_size, generator=generator)
    hidden = torch.randn(positions, hidden_size, generator=generator)
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    cut = positions // 3

    def run(
        start: int, stop: int, factor: float = 1.0, weights: torch.Tensor | None = None
    ) -> tuple[StepOutput, torch.Tensor, torch.Tensor]:
        states = hidden[start:stop].clone().requires_grad_()
        matrix = weight.clone().requires_grad_()
        inputs = {"hidden": states, "head": Head(weight=matrix), "targets": targets[start:stop].clone()}
        if weights is None:
            output = loss(**inputs)
            _check_backward(output, stop - start, factor)
        else:
            output = loss(**inputs, weights=weights[start:stop].clone())
            _check_backward(output, float(weights[start:stop].double().sum()), factor, "as the sum of the weights")
        assert torch.equal(states.detach(), hidden[start:stop]), "the loss changed `hidden` in place"
        assert torch.equal(matrix.detach(), weight), "the loss changed the head's weight in place"
        return output, _gradient(states), _gradient(matrix)

    whole, hidden_grad, weight_grad = run(0, positions)
    first, hidden_first, weight_first = run(0, cut)
    second, hidden_second, weight_second = run(cut, positions)
    _check_additive(whole, first, second, tolerance)
    _close(torch.cat([hidden_first, hidden_second]), hidden_grad, tolerance, "gradients of hidden, part by part")
    _close(weight_first + weight_second, weight_grad, tolerance, "gradients of the head, summed over the parts")
    _, hidden_scaled, weight_scaled = run(0, positions, factor=0.25)
    _close(hidden_scaled, hidden_grad * 0.25, tolerance, "gradients of hidden for 0.25 × the sum")
    _close(weight_scaled, weight_grad * 0.25, tolerance, "gradients of the head for 0.25 × the sum")
    assert weight_grad.abs().max() > 0 or hidden_grad.abs().max() > 0, "all gradients are 0"

    empty, _, empty_grad = run(0, 0)
    _none_sums_to_zero(empty, "position")
    assert not empty_grad.abs().sum().item(), "no position gives a gradient to the head"

    with torch.no_grad():
        evaluated = loss(hidden=hidden.clone(), head=Head(weight=weight.clone()), targets=targets)
        from_logits = loss(hidden=hidden @ weight.T, head=Head(weight=None), targets=targets)
    _close(evaluated.loss_sum, whole.loss_sum, tolerance, "the sum without gradients")
    _close(from_logits.loss_sum, whole.loss_sum, tolerance, "the sum from a head without weight (hidden are logits)")
    if accepts_weights(loss):
        _check_weights(run, 0.1 + torch.rand(positions, generator=generator), cut, tolerance)
        with torch.no_grad():
            doubled = torch.full((positions,), 2.0)
            from_logits = loss(hidden=hidden @ weight.T, head=Head(weight=None), targets=targets, weights=doubled)
        _close(from_logits.loss_sum, whole.loss_sum * 2, tolerance, "the sum from weighted logits")


def _check_weights(
    run: Callable[..., tuple[StepOutput, torch.Tensor, torch.Tensor]],
    weights: torch.Tensor,
    cut: int,
    tolerance: float,
) -> None:
    """`run(start, stop, weights=…)`: output and gradients of these positions; `weights`: of all of them."""
    import torch

    count = len(weights)
    weighted, zeroed = run(0, count, weights=weights), weights.clone()
    zeroed[:cut] = 0
    rest, hidden_rest, head_rest = run(cut, count, weights=weights)
    padded = rest, torch.cat([torch.zeros_like(weighted[1][:cut]), hidden_rest]), head_rest
    for what, result, expected, factor in (
        ("weights of 1", run(0, count, weights=torch.ones_like(weights)), run(0, count), 1.0),
        ("weights of 0", run(0, count, weights=zeroed), padded, 1.0),
        ("twice the weights", run(0, count, weights=2 * weights), weighted, 2.0),
    ):
        output, *gradients = result
        reference, *wanted = expected
        _close(output.loss_sum, reference.loss_sum * factor, tolerance, f"the sum with {what}")
        for gradient, other, name in zip(gradients, wanted, ("hidden", "the head"), strict=True):
            _close(gradient, other * factor, tolerance, f"gradients of {name} with {what}")
        for name, metric in reference.metrics.items():
            if metric.reduce == "mean":
                total, weight = output.metrics[name].total, output.metrics[name].weight
                _close(total, float(metric.total) * factor, tolerance, f"the total of metric '{name}' with {what}")
                _close(weight, float(metric.weight) * factor, tolerance, f"the weight of metric '{name}' with {what}")
    _check_additive(weighted[0], run(0, cut, weights=weights)[0], rest, tolerance)


def check_preference_loss(
    loss: Any, *, pairs: int = 6, reference: bool = True, seed: int = 0, tolerance: float = 1e-4
) -> None:
    """Raises `AssertionError` unless a built preference loss keeps its contract on random float32 log-probabilities: a
    scalar float32 sum with the number of pairs as count; sum, additive metrics and gradients of two parts add up to the
    whole; no pair gives 0. `reference`: whether it is given the reference's log-probabilities, or None for them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    names = ["chosen", "rejected", "reference_chosen", "reference_rejected"]
    values = {name: -10 * torch.rand(pairs, generator=generator) for name in names}
    tokens = {name: torch.randint(1, 20, (pairs,), generator=generator) for name in ("chosen", "rejected")}
    cut = pairs // 3

    def run(start: int, stop: int, factor: float = 1.0) -> tuple[StepOutput, torch.Tensor]:
        parts: dict[str, torch.Tensor | None] = {name: value[start:stop].clone() for name, value in values.items()}
        chosen = values["chosen"][start:stop].clone().requires_grad_()
        rejected = values["rejected"][start:stop].clone().requires_grad_()
        parts |= {"chosen": chosen, "rejected": rejected}
        parts |= {f"{name}_lengths": lengths[start:stop] for name, lengths in tokens.items()}
        if not reference:
            parts |= {"reference_chosen": None, "reference_rejected": None}
        output = loss(**parts)
        _check_backward(output, stop - start, factor)
        return output, torch.stack([_gradient(chosen), _gradient(rejected)])

    _check_parts(run, pairs, cut, tolerance, "pair")


def check_feedback_loss(
    loss: Any, *, rows: int = 6, reference: bool = True, seed: int = 0, tolerance: float = 1e-4
) -> None:
    """Raises `AssertionError` unless a built feedback loss keeps its contract on random float32 log-probabilities: a
    scalar float32 sum with the number of rows as count; sum, additive metrics and gradients of two parts, of which the
    first has desirable rows alone, add up to the whole for the same `kl`; no row gives 0. `reference`: whether it is
    given the reference's log-probabilities, or None for them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    values, beside = (-10 * torch.rand(rows, generator=generator) for _ in range(2))
    cut = max(1, rows // 3)
    desirable = (torch.arange(rows) < cut) | (torch.arange(rows) % 2 == 0)

    def run(start: int, stop: int, factor: float = 1.0) -> tuple[StepOutput, torch.Tensor]:
        completion = values[start:stop].clone().requires_grad_()
        output = loss(
            completion=completion,
            reference=beside[start:stop].clone() if reference else None,
            desirable=desirable[start:stop].clone(),
            kl=torch.tensor(0.5),
        )
        _check_backward(output, stop - start, factor)
        return output, _gradient(completion)

    gradient = _check_parts(run, rows, cut, tolerance, "row")
    assert gradient.abs().max() > 0, "all gradients are 0"


def check_reward_loss(loss: Any, *, pairs: int = 6, seed: int = 0, tolerance: float = 1e-4) -> None:
    """Raises `AssertionError` unless a built reward loss keeps its contract on random float32 scores: a scalar float32
    sum with the number of pairs as count; sum, additive metrics and gradients of two parts add up to the whole; no pair
    gives 0; and on the whole the gradients draw chosen scores above rejected ones."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(2, pairs, generator=generator)
    cut = pairs // 3

    def run(start: int, stop: int, factor: float = 1.0) -> tuple[StepOutput, torch.Tensor]:
        chosen, rejected = (side[start:stop].clone().requires_grad_() for side in scores)
        output = loss(chosen=chosen, rejected=rejected)
        _check_backward(output, stop - start, factor)
        return output, torch.stack([_gradient(chosen), _gradient(rejected)])

    gradient = _check_parts(run, pairs, cut, tolerance, "pair")
    assert float((gradient[1] - gradient[0]).sum()) > 0, "the loss does not draw chosen scores above rejected ones"


def _check_parts(
    run: Callable[..., tuple[StepOutput, torch.Tensor]], count: int, cut: int, tolerance: float, item: str
) -> torch.Tensor:
    """The gradient of the whole, once two parts were seen to add up to it and no item to 0. `run(start, stop, factor)`:
    the loss of these items, and the gradient of `factor` × its sum, the items along the last dimension."""
    import torch

    whole, gradient = run(0, count)
    first, gradient_first = run(0, cut)
    second, gradient_second = run(cut, count)
    _check_additive(whole, first, second, tolerance)
    _close(torch.cat([gradient_first, gradient_second], -1), gradient, tolerance, "gradients, part by part")
    _close(run(0, count, factor=0.25)[1], gradient * 0.25, tolerance, "gradients for 0.25 × the sum")
    empty, _ = run(0, 0)
    _none_sums_to_zero(empty, item)
    return gradient


def _check_backward(output: Any, count: float, factor: float, of: str = "items") -> None:
    _check_output(output, count, of)
    assert output.loss_sum.requires_grad, "loss_sum carries no gradient"
    (output.loss_sum * factor).backward()


def _check_output(output: Any, count: float, of: str) -> None:
    import torch

    assert isinstance(output, StepOutput), f"the loss returns a {type(output).__name__}, not a StepOutput"
    value = output.loss_sum
    assert isinstance(value, torch.Tensor), f"loss_sum is a {type(value).__name__}, not a tensor"
    assert value.ndim == 0, f"loss_sum has shape {tuple(value.shape)}, not that of a scalar"
    assert value.dtype == torch.float32, f"loss_sum is {value.dtype}, not float32"
    total = float(value.detach())
    assert math.isfinite(total), f"loss_sum of {count:g} {of} is {total}"
    assert same_count(float(output.count), count), f"count is {float(output.count):g} for {count:g} {of}"
    assert isinstance(output.metrics, Mapping), "metrics is no mapping of names to Metric"
    for name, metric in output.metrics.items():
        assert isinstance(metric, Metric), f"metric '{name}' is a {type(metric).__name__}, not a Metric"
        assert metric.reduce in get_args(Reduction), f"metric '{name}' reduces by '{metric.reduce}'"
        assert math.isfinite(float(metric.total)), f"metric '{name}' of {count:g} {of} is {float(metric.total)}"


def _none_sums_to_zero(output: StepOutput, item: str) -> None:
    total = float(output.loss_sum.detach())
    assert total == 0.0, f"no {item} gives a sum of {total}, not 0"


def _check_additive(whole: StepOutput, first: StepOutput, second: StepOutput, tolerance: float) -> None:
    _close(first.loss_sum + second.loss_sum, whole.loss_sum, tolerance, "loss_sum of the parts (is it a mean?)")
    for name, metric in whole.metrics.items():
        if metric.reduce == "last":
            continue
        parts = [first.metrics.get(name), second.metrics.get(name)]
        present = [part for part in parts if part is not None]
        total = sum(float(part.total) for part in present)
        _close(total, float(metric.total), tolerance, f"totals of metric '{name}' over the parts")
        if metric.reduce == "mean":
            weights = sum(float(part.weight) for part in present)
            _close(weights, float(metric.weight), tolerance, f"weights of metric '{name}' over the parts")


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    import torch

    if leaf.grad is None:
        return torch.zeros_like(leaf)
    assert bool(torch.isfinite(leaf.grad).all()), "a gradient is not finite"
    return leaf.grad


def _close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    import torch

    actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected).detach()
    off = float((actual - expected).abs().max()) if actual.numel() else 0.0
    limit = tolerance * max(1.0, float(expected.abs().max()) if expected.numel() else 0.0)
    assert off <= limit, f"{what}: off by {off:.3g} from the whole batch's, allowed {limit:.3g}"
