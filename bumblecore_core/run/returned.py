"""What a plugin's methods return, held to their contracts: each check is a few comparisons of types and shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from numbers import Real
from pathlib import Path
from typing import Any, get_args

import torch

from bumblecore_core.registry.validate import typename
from bumblecore_core.toolkit.token_weights import same_count
from bumblecore_core.values import Batch, Metric, Reduction, StepOutput, StepResult

REDUCTIONS = get_args(Reduction)
PLAIN = (int, float)  # looked at first: `numbers.Real` takes a microsecond
SUMS = (torch.float32, torch.float64)
WANTS_LOSS = (
    "A loss returns StepOutput(loss_sum=…, count=…): a scalar float32 tensor with a gradient that is the sum over all "
    "items (positions, pairs or rows), their number, and metrics as {name: Metric}"
)
WANTS_STEP = "A stage's step returns the StepOutput of its loss, with a gradient"


@dataclass(frozen=True)
class Contract:
    """What a method returns. `fault(result, arguments)`: what is wrong, as a verb phrase, or None."""

    wants: str
    fault: Callable[[Any, Mapping[str, Any]], str | None]


def output_fault(output: Any, *, wants_gradient: bool) -> str | None:
    """What is wrong with what a loss or a step returned. Reads no number from a device."""
    if not isinstance(output, StepOutput):
        return f"returned {typename(output)}, not a StepOutput"
    total = output.loss_sum
    if not isinstance(total, torch.Tensor):
        return f"returned {typename(total)} as loss_sum, not a tensor"
    if total.ndim != 0:
        return f"returned a loss_sum of shape {tuple(total.shape)}, not a scalar"
    if total.dtype not in SUMS:
        return f"returned a loss_sum in {total.dtype}, not in float32"
    if wants_gradient and not total.requires_grad:
        return "returned a loss_sum without a gradient (is it detached?)"
    if fault := _count_fault(output.count):
        return f"returned {fault} as count, not a number of items"
    return _metrics_fault(output.metrics)


def batch_fault(batch: Any, arguments: Mapping[str, Any], vocabulary: int | None) -> str | None:
    """What is wrong with what `collate` returned for its `arguments` (`rows`, `counts`). All of it is on the CPU."""
    if not isinstance(batch, Batch):
        return f"returned {typename(batch)}, not a Batch"
    shape = (1, sum(batch.document_lengths)) if _are_ints(batch.document_lengths) else None
    if shape is None or not batch.document_lengths or min(batch.document_lengths) < 1:
        return "returned a Batch whose document_lengths are not positive ints"
    documents = len(batch.document_lengths)
    expected = {"input_ids": (torch.int64, shape), "position_ids": (torch.int64, shape)}
    for name, (dtype, size) in {**expected, "cu_seqlens": (torch.int32, (documents + 1,))}.items():
        tensor = getattr(batch, name)
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tuple(tensor.shape) != size:
            return f"returned a Batch whose {name} is {_described(tensor)}, not {dtype} of shape {size}"
    starts = batch.cu_seqlens.tolist()
    if starts != [0, *accumulate(batch.document_lengths)]:
        return "returned a Batch whose cu_seqlens are not where the documents of document_lengths start"
    prefixes = batch.shared_prefixes or (0,) * documents
    if len(prefixes) != documents or tuple(batch.position_ids[0, starts[:-1]].tolist()) != tuple(prefixes):
        return "returned a Batch whose position_ids do not begin anew, after its shared prefix, with each document"
    smallest, largest = (int(bound) for bound in batch.input_ids.aminmax())
    if smallest < 0 or (vocabulary is not None and largest >= vocabulary):
        return f"returned a Batch with token ids from {smallest} to {largest}, of a vocabulary of {vocabulary}"
    if tuple(batch.rows) != tuple(arguments["rows"]):
        return "returned a Batch of other rows than it was passed"
    if not isinstance(batch.count, Real) or not same_count(float(batch.count), sum(arguments["counts"])):
        return f"returned a Batch with the count {batch.count!r} for counts that add up to {sum(arguments['counts'])}"
    wrong = [name for name, value in batch.extras.items() if not isinstance(value, torch.Tensor)]
    return f"returned a Batch whose extra '{wrong[0]}' is no tensor" if wrong else None


def figures_fault(figures: Any, names: Sequence[str], shape: tuple[int, ...]) -> str | None:
    """What is wrong with a dict of tensors of this shape by name."""
    if not isinstance(figures, Mapping) or set(figures) != set(names):
        shown = sorted(map(str, figures)) if isinstance(figures, Mapping) else typename(figures)
        return f"returned {shown}, not a dict with {', '.join(names)}"
    for name, value in figures.items():
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            return f"returned {_described(value)} as {name}, not a tensor of shape {shape}"
    return None


def stage_contracts(stage: Any, vocabulary: int | None) -> dict[str, Contract]:
    """Of the methods of a built stage; `vocabulary`: how many token ids the model knows, None where it does not say.
    They travel to data workers with the stage, so they pickle."""
    columns = tuple(getattr(getattr(stage, "reference", None), "columns", ()))
    statistics = tuple(getattr(stage, "statistics", ()))
    return {
        "collate": Contract(
            "`collate` returns the Batch of the rows that it is passed (bumblecore_core.values.Batch)",
            partial(batch_fault, vocabulary=vocabulary),
        ),
        "preview": Contract("`preview` returns a list of (text, whether it is trained)", _preview_fault),
        "reference_step": Contract(
            "`reference_step` returns a figure of each row for each of its reference's columns",
            partial(_rows_fault, names=columns),
        ),
        "statistics_step": Contract(
            "`statistics_step` returns a scalar for each of the stage's `statistics`",
            partial(_scalars_fault, names=statistics),
        ),
    }


def _rows_fault(figures: Any, arguments: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return figures_fault(figures, names, (len(arguments["batch"].rows),))


def _scalars_fault(figures: Any, arguments: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return figures_fault(figures, names, ())


def _module_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    return None if isinstance(result, torch.nn.Module) else f"returned {typename(result)}, not a model"


def _description_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], str)
    if pair and isinstance(result[1], tuple | list) and all(isinstance(warning, str) for warning in result[1]):
        return None
    return f"returned {typename(result)} as its description"


def _scale_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    if isinstance(result, Real) and 0 < float(result) < math.inf:
        return None
    return f"returned {result!r} as the lr_scale of {arguments.get('name')}"


def _saved_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    directory = Path(arguments["directory"])
    return None if any(path.is_file() for path in directory.rglob("*")) else "saved no file"


ADAPTER_CONTRACTS = {
    "wrap": Contract("`wrap` returns the model with the adapter in it, a torch.nn.Module", _module_fault),
    "merge": Contract("`merge` returns the base model, a torch.nn.Module", _module_fault),
    "describe": Contract("`describe` returns (one line of text, a list of warnings)", _description_fault),
    "lr_scale": Contract("`lr_scale` returns a number above 0", _scale_fault),
    "save": Contract("`save` writes the adapter's files into the directory", _saved_fault),
}


def _result_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    return None if isinstance(result, StepResult) else f"returned {typename(result)} from step, not a StepResult"


def _pass_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    return None if isinstance(result, StepOutput) else f"returned {typename(result)} for a batch, not a StepOutput"


def _rates_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    rates = isinstance(result, Mapping) and result and all(isinstance(rate, Real) for rate in result.values())
    return None if rates else "returned no learning rate for any parameter group"


def _mapping_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    return None if isinstance(result, Mapping) else f"returned {typename(result)} as the model's state, not a dict"


def _callable_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    return None if callable(result) else f"returned {typename(result)}, which cannot be called"


def _pairs_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    pairs = isinstance(result, tuple | list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in result)
    return None if pairs else f"returned {typename(result)} as its features"


ENGINE_CONTRACTS = {
    "features": Contract("`features` returns a list of (feature, decision) pairs", _pairs_fault),
    "forward_backward": Contract("`forward_backward` returns the module's StepOutput", _pass_fault),
    "evaluate": Contract("`evaluate` returns the module's StepOutput", _pass_fault),
    "step": Contract("`step` returns a StepResult", _result_fault),
    "learning_rates": Contract("`learning_rates` returns {name of a parameter group: rate}", _rates_fault),
    "model_state": Contract("`model_state` returns {name: tensor}", _mapping_fault),
    "training_state": Contract("`training_state` returns a function that writes into a directory", _callable_fault),
    "frozen": Contract("`frozen` returns a function that calls the module", _callable_fault),
}


def _preview_fault(result: Any, arguments: Mapping[str, Any]) -> str | None:
    pairs = isinstance(result, tuple | list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in result)
    if pairs and all(isinstance(text, str) for text, _ in result):
        return None
    return f"returned {typename(result)} as a preview"


def _count_fault(count: Any) -> str | None:
    if type(count) is int and count >= 0:
        return None
    if isinstance(count, torch.Tensor):
        return None if count.ndim == 0 else f"a tensor of shape {tuple(count.shape)}"
    if not isinstance(count, Real) or isinstance(count, bool):
        return typename(count)
    return None if 0 <= float(count) < math.inf else repr(count)


def _metrics_fault(metrics: Any) -> str | None:
    if not isinstance(metrics, Mapping):
        return f"returned {typename(metrics)} as metrics, not a dict"
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            return f"returned {typename(metric)} as the metric '{name}', not a Metric"
        if metric.reduce not in REDUCTIONS:
            return f"returned a metric '{name}' that reduces by {metric.reduce!r}, not by {', '.join(REDUCTIONS)}"
        for value in (metric.total, metric.weight):
            if type(value) not in PLAIN and not _is_number(value):
                return f"returned {_described(value)} in the metric '{name}', not a number"
    return None


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, Real)


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else typename(value)


def _are_ints(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(value, int) for value in values)
