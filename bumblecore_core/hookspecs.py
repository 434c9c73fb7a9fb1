"""The hooks of BumbleCore: the manual for plugin authors.

A plugin is a module named by an entry point of the group `bumblecore`. It implements any of the hooks below with
`@hookimpl`. Each hook takes no argument, runs once at start, and returns records; nothing depends on the order in which
plugins are called. Set `BUMBLECORE_HOOK_API = 1` in the module to state the hook version that it was written for.

```toml
[project.entry-points.bumblecore]
my-plugin = "my_plugin"
```
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from bumblecore_core import records

PROJECT = "bumblecore"
ENTRY_POINT_GROUP = "bumblecore"
HOOK_API_VERSION = 1
HOOK_API_ATTRIBUTE = "BUMBLECORE_HOOK_API"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def bumble_stages() -> Sequence[records.StageRecord]:  # type: ignore[empty-body]
    """Training stages: encode samples to token examples, compute a step.

    ```python
    from bumblecore_core import StageRecord, hookimpl


    def encode(samples, context):
        from bumblecore_core.toolkit.causal import causal_example

        tokens = context.tokenizer([s.text for s in samples], truncation=True, max_length=context.max_length)
        return [causal_example(ids, [(0, len(ids))]) for ids in tokens.input_ids]  # every token is trained


    def build(*, options, context):
        from bumblecore_core.toolkit.causal import CausalStage

        return CausalStage(encode, context)  # or any object with the methods of `Stage`


    @hookimpl
    def bumble_stages():
        return [
            StageRecord(name="my_stage", summary="Trains on text my way.", build=build,
                        reads="text", loss_kind="token", default_loss="causal_lm")
        ]
    ```
    """


@hookspec
def bumble_losses() -> Sequence[records.LossRecord]:  # type: ignore[empty-body]
    """Losses: return (sum, count, metrics); the core divides by the count of the whole optimizer step.

    ```python
    from bumblecore_core import LossRecord, StepOutput, hookimpl


    def build(*, options):
        import torch.nn.functional as F

        def focal(*, hidden, head, targets):
            losses = F.cross_entropy(head.logits(hidden).float(), targets, reduction="none")
            return StepOutput(loss_sum=((1 - (-losses).exp()) ** 2 * losses).sum(), count=targets.numel())

        return focal


    @hookimpl
    def bumble_losses():
        return [LossRecord(name="focal", summary="Focal loss, gamma 2.", build=build, loss_kind="token")]
    ```
    """


@hookspec
def bumble_optimizers() -> Sequence[records.OptimizerRecord]:  # type: ignore[empty-body]
    """Optimizers: a torch optimizer from parameter groups.

    ```python
    from pydantic import Field

    from bumblecore_core import OptimizerRecord, Options, hookimpl


    class SgdOptions(Options):
        lr: float = Field(1e-2, gt=0, description="Learning rate.")


    def build(*, options, groups):
        import torch

        return torch.optim.SGD([{"params": g.params, "lr": options.lr * g.lr_scale, "name": g.name} for g in groups])


    @hookimpl
    def bumble_optimizers():
        return [OptimizerRecord(name="my_sgd", summary="Plain SGD.", build=build, options=SgdOptions)]
    ```
    """


@hookspec
def bumble_schedulers() -> Sequence[records.SchedulerRecord]:  # type: ignore[empty-body]
    """Learning-rate schedules over the run's `total_steps`.

    ```python
    from bumblecore_core import SchedulerRecord, hookimpl


    def build(*, options, optimizer, total_steps):
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, lambda step: 0.5 ** (step / max(1, total_steps)))


    @hookimpl
    def bumble_schedulers():
        return [SchedulerRecord(name="halving", summary="Halves the rate over the run.", build=build)]
    ```
    """


@hookspec
def bumble_data_formats() -> Sequence[records.DataFormatRecord]:  # type: ignore[empty-body]
    """Data formats: tell a row's schema and convert it to a sample. Where rows can give several kinds of sample,
    `detect` returns a tuple of them, and `convert(self, *, row, reads=None)` is passed the one that the stage reads.

    ```python
    from bumblecore_core import ChatSample, DataFormatRecord, hookimpl


    class Format:
        def convert(self, *, row):
            return ChatSample(messages=(
                {"role": "user", "content": row["q"]},
                {"role": "assistant", "content": row["a"]},
            ))


    def build(*, options):
        return Format()


    @hookimpl
    def bumble_data_formats():
        return [
            DataFormatRecord(
                name="qa", summary="Rows with q and a.", build=build,
                detect=lambda row: "chat" if {"q", "a"} <= row.keys() else None,
            )
        ]
    ```
    """


@hookspec
def bumble_adapters() -> Sequence[records.AdapterRecord]:  # type: ignore[empty-body]
    """Adapters: wrap the model, give the base policy back as a context, save and merge. See
    `bumblecore_core.protocols.Adapter`, of which these are two methods of seven.

    ```python
    from bumblecore_core import AdapterRecord, hookimpl


    class BiasOnly:
        def wrap(self, *, model, base, checkpoint):
            for name, parameter in model.named_parameters():
                parameter.requires_grad = self.saves(name=name)
            return model

        def saves(self, *, name):
            return name.endswith("bias")


    @hookimpl
    def bumble_adapters():
        return [AdapterRecord(name="bias_only", summary="Trains biases alone.", build=lambda *, options: BiasOnly())]
    ```
    """


@hookspec
def bumble_engines() -> Sequence[records.EngineRecord]:  # type: ignore[empty-body]
    """Engines: own devices, wrapping, backward, step and state. See `bumblecore_core.protocols.Engine`.

    ```python
    from bumblecore_core import EngineRecord, hookimpl


    def build(*, options, context):
        from my_plugin.engine import MyEngine

        return MyEngine(context)


    @hookimpl
    def bumble_engines():
        return [EngineRecord(name="mine", summary="My own device.", build=build)]
    ```
    """


@hookspec
def bumble_loggers() -> Sequence[records.LoggerRecord]:  # type: ignore[empty-body]
    """Loggers: see the run on rank 0. One that raises is reported once and dropped.

    ```python
    from bumblecore_core import LoggerRecord, hookimpl


    class Print:
        def start(self, *, info):
            print("steps:", info.total_steps)

        def step(self, *, event):
            print(event.step, dict(event.metrics))

        def saved(self, *, directory):
            print("saved", directory)

        def finish(self, *, result):
            print(result.status)


    @hookimpl
    def bumble_loggers():
        return [LoggerRecord(name="print", summary="Prints each step.", build=lambda *, options: Print())]
    ```
    """


@hookspec
def bumble_attentions() -> Sequence[records.AttentionRecord]:  # type: ignore[empty-body]
    """Attention implementations for padding-free batches, registered through transformers' `AttentionInterface`.

    ```python
    from bumblecore_core import AttentionRecord, hookimpl


    def load():
        from bumblecore_core.protocols import AttentionFunctions
        from my_plugin.attention import forward

        return AttentionFunctions(forward=forward, mask=lambda *args, **kwargs: None)


    @hookimpl
    def bumble_attentions():
        return [
            AttentionRecord(
                name="mine", summary="My attention.", load=load,
                unsupported=lambda *, device, dtype: None if device.type == "cuda" else "needs CUDA",
            )
        ]
    ```
    """


@hookspec
def bumble_commands() -> Sequence[records.CommandRecord]:  # type: ignore[empty-body]
    """Commands under `bumble`, loaded when they are called.

    ```python
    import click

    from bumblecore_core import CommandRecord, hookimpl


    @click.command()
    def hello():
        '''Greets.'''
        click.echo("hello")


    @hookimpl
    def bumble_commands():
        return [CommandRecord(name="hello", summary="Greets.", load=lambda: hello)]
    ```
    """


HOOK_OF_KIND = {record.kind: f"bumble_{record.kind}" for record in records.RECORDS}
