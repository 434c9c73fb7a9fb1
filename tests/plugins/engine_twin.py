"""A tiny model behind the engines' forward contract, and the training step written out naively."""

from __future__ import annotations

import torch
from torch.nn import functional

from bumblecore_core import Batch, EngineContext, Metric, ParameterGroup, StepOutput
from bumblecore_plugins.engines import TorchOptions
from bumblecore_plugins.engines.torch_engine import TorchEngine

VOCABULARY, HIDDEN = 11, 8


class Tiny(torch.nn.Module):
    """Embedding, norm, two layers, a tied head, and a matrix that no forward pass uses. `share`: of the second layer's
    part in the sum; None leaves it out."""

    def __init__(self, *, dropout: float = 0.0, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.share: float | None = 1.0
        self.embedding = torch.nn.Embedding(VOCABULARY, hidden)
        self.norm = torch.nn.LayerNorm(hidden)
        self.first = torch.nn.Linear(hidden, hidden)
        self.second = torch.nn.Linear(hidden, hidden, bias=False)
        self.unused = torch.nn.Linear(hidden, hidden, bias=False)
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(hidden, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("frequencies", torch.linspace(0.1, 1.0, hidden))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids)
        hidden = hidden * (1 + self.frequencies.to(hidden.dtype))
        hidden = hidden + self.dropout(torch.tanh(self.first(self.norm(hidden))))
        if self.share is not None:
            hidden = hidden + self.share * torch.tanh(self.second(hidden))
        return self.head(hidden)


class Wrapped(torch.nn.Module):
    """As the core's module: `.model` is what is trained and saved; next-token loss summed over positions."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> StepOutput:
        logits = self.model(batch.input_ids[0, :-1]).float()
        loss = functional.cross_entropy(logits, batch.input_ids[0, 1:], reduction="sum")
        poison = batch.extras.get("poison")
        loss = loss if poison is None else loss * poison
        count = batch.input_ids.shape[1] - 1
        return StepOutput(loss_sum=loss, count=count, metrics={"nll": Metric(total=loss.detach(), weight=count)})


def tiny(seed: int = 0, **options) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(**options)


def batch(seed: int, tokens: int = 12, poison: float | None = None) -> Batch:
    ids = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(seed))
    return Batch(
        input_ids=ids,
        position_ids=torch.arange(tokens)[None],
        cu_seqlens=torch.tensor([0, tokens], dtype=torch.int32),
        document_lengths=(tokens,),
        rows=(seed,),
        count=tokens - 1,
        extras={} if poison is None else {"poison": torch.tensor(poison)},
    )


def groups(model: torch.nn.Module) -> list[ParameterGroup]:
    parameters = list(model.parameters())
    return [
        ParameterGroup(name="decay", params=[p for p in parameters if p.ndim > 1], decay=True),
        ParameterGroup(name="no_decay", params=[p for p in parameters if p.ndim <= 1], decay=False),
    ]


def adamw(of: list[ParameterGroup], lr: float = 0.01) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": g.params, "name": g.name, "weight_decay": 0.1 if g.decay else 0.0} for g in of], lr=lr, fused=True
    )


def engine(model, *, make_optimizer=adamw, make_scheduler=None, options=None, **context) -> TorchEngine:
    made = TorchEngine(
        options=TorchOptions(device="cpu", **(options or {})), context=EngineContext(**{"dtype": "fp32", **context})
    )
    made.prepare(
        module=Wrapped(model),
        groups=groups(model),
        make_optimizer=make_optimizer,
        make_scheduler=make_scheduler or (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1.0)),
    )
    return made


def train(made: TorchEngine, windows, counts=None) -> list[float]:
    """One optimizer step per window of batches (None is a filler); returns the gradient norms before clipping.
    `counts`: each window's count over all ranks, where there are several."""
    norms = []
    for step, window in enumerate(windows):
        count = counts[step] if counts else sum(each.count for each in window if each is not None)
        for at, each in enumerate(window):
            scale = 0.0 if each is None else 1.0 / count
            made.forward_backward(
                batch=batch(999, poison=float("nan")) if each is None else each, scale=scale, last=at == len(window) - 1
            )
        norms.append(made.step(gradient_scale=1.0).grad_norm)
        made.advance_schedule(metric=None)
    return norms


def naive(model: torch.nn.Module, windows, *, half: torch.dtype | None, lr: float = 0.01) -> None:
    """The same training with nothing clever: float32 weights, cast to `half` by hand for each forward pass, gradients
    cast to float32 and added up by hand (those of the tied weight's two uses as well), torch's AdamW on the float32
    weights."""
    optimizer = adamw(groups(model), lr)
    for window in windows:
        count = sum(each.count for each in window)
        total: dict[str, torch.Tensor] = {}
        for each in window:
            copy = tiny()
            copy.load_state_dict(model.state_dict())
            copy.head.weight = torch.nn.Parameter(copy.embedding.weight.detach().clone())
            if half is not None:
                for parameter in copy.parameters():
                    parameter.data = parameter.data.to(half)
            Wrapped(copy)(each).loss_sum.backward()
            found = {name: p.grad.float() for name, p in copy.named_parameters() if p.grad is not None}
            found["embedding.weight"] = found["embedding.weight"] + found.pop("head.weight")
            for name, gradient in found.items():
                total[name] = total[name] + gradient if name in total else gradient
        for name, parameter in model.named_parameters():
            parameter.grad = total[name] * (1.0 / count) if name in total else None
        optimizer.step()
