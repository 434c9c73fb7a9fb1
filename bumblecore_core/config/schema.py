"""The run's configuration: a small tree of sections; each plugin choice is a name or `{name: …, option: …}`."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Dtype = Literal["auto", "bf16", "fp16", "fp32"]
DEFAULT_LOGGERS = ("progress", "log_file", "metrics_json", "tensorboard", "loss_plot")


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class PluginChoice(BaseModel):
    """A plugin picked by name, with its raw options (typed by the plugin that owns them at resolution)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="The plugin's name.")

    @property
    def raw_options(self) -> dict[str, Any]:
        """The options as written, without the name."""
        return dict(self.model_extra or {})


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _switched_off(value: Any) -> Any:
    return "off" if value is False else value  # YAML reads an unquoted off as false


Choice = Annotated[PluginChoice, BeforeValidator(_named)]


class ModelSection(Section):
    """The model and its tokenizer."""

    path: str = Field(
        min_length=1,
        description="Directory of the model (for pretrain: of its config.json), or an earlier run's output directory.",
    )
    tokenizer: str | None = Field(None, description="Directory of the tokenizer; the model's own when not set.")
    chat_template: str | None = Field(None, description="A .jinja file that replaces the tokenizer's chat template.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Variables for the chat template, such as enable_thinking: false; a row's own override them."
    )
    chat_template_date: date | None = Field(
        None,
        description="The day that a chat template prints as today's; the day of the run's first start when not set.",
    )
    dtype: Dtype = Field(
        "auto", description="What weights compute in; auto: bf16 where the device has it in hardware, fp32 otherwise."
    )
    master_weights: bool = Field(
        True,
        description="Keep float32 master copies of half-precision weights (off: pure bf16, saves 4 bytes a parameter).",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more compute."
    )
    attention: str = Field(
        "auto", description="An attention plugin's name, or auto: the best that is exact for the model."
    )
    router_aux_loss: Annotated[
        Annotated[float, Field(ge=0)] | Literal["auto", "off"], BeforeValidator(_switched_off)
    ] = Field(
        "auto",
        description="Load-balancing loss of a mixture of experts. auto: on if config.json sets output_router_logits, "
        "with its coefficient; off; or a coefficient, which turns it on.",
    )
    trust_remote_code: bool = Field(False, description="Run model code that lies in the model's directory.")
    add_tokens: list[str] = Field(
        [], description="Texts that become one token each, such as <tool>. Tokens that the tokenizer has are accepted."
    )
    resize_embeddings: bool = Field(
        False, description="Give the model new rows where the tokenizer has more ids than the embeddings have rows."
    )
    resize_multiple_of: int = Field(
        64, ge=1, le=65536, description="The number of rows after resizing is a multiple of this."
    )


class DataFile(Section):
    """One entry of a list of data files."""

    path: str = Field(min_length=1, description="A file or a glob.")
    format: Choice | None = Field(None, description="This file's data format; data.format when not set.")
    weight: float = Field(
        1.0, gt=0, le=1000, description="How often its rows appear in an epoch: 2 doubles, 0.5 takes half."
    )


def _files(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Files = Annotated[list[DataFile], BeforeValidator(_files), Field(min_length=1)]


class DataSection(Section):
    """Training and evaluation data."""

    path: Files = Field(description="A file, a glob, {path, format, weight}, or a list of these.")
    format: Choice = Field(
        PluginChoice(name="auto"), description="The data format, or auto: told from each file's first row."
    )
    max_length: int = Field(1024, ge=8, description="Tokens of the longest training example.")
    packing: bool = Field(False, description="Fill each of a micro-batch's rows with whole documents up to max_length.")
    eval_path: Files | None = Field(None, description="Evaluation data, in the forms of path.")
    eval_split: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the rows to hold out for evaluation, chosen by the seed; never a part of a row.",
    )
    txt_split: Literal["line", "paragraph", "file"] = Field("line", description="What one row of a .txt file is.")
    max_row_bytes: int = Field(
        16 << 20,
        ge=1024,
        le=2**31 - 1,
        description="Rows with more bytes are refused before they are tokenized. Not checked again for token shards "
        "that exist.",
    )
    cache_dir: str | None = Field(
        None, description="Where token shards lie; default $BUMBLE_CACHE or ~/.cache/bumblecore."
    )
    num_proc: int | None = Field(
        None, ge=0, le=1024, description="Processes that tokenize (0: this one); by size when not set."
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="DataLoader workers; 2 per GPU when not set, none on CPU (batches are memory-mapped).",
    )
    special_tokens: Literal["control", "text", "refuse"] = Field(
        "control",
        description="Special tokens written out in a row's texts: read as control tokens, as plain text, or an error.",
    )
    too_long: Literal["truncate", "drop", "error"] = Field(
        "truncate",
        description="Rows that do not fit max_length. truncate: cut them, and leave out and count those whose prompt "
        "does not fit (more than 5 % of the rows: an error); drop: leave out and count all of them; error: refuse.",
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="Rows with an error: refuse the data, or skip, count and list them."
    )
    max_bad_share: float = Field(
        0.05, ge=0, le=1, description="Share of rows that on_bad_row: skip may skip; more are an error."
    )
    strict: bool = Field(False, description="Make errors of the oddities that are otherwise dropped and counted.")


class TrainSection(Section):
    """Batch sizes, length, seed."""

    epochs: float = Field(
        1.0, gt=0, le=1e6, description="Passes over the data; may be a fraction. Not used with max_steps."
    )
    max_steps: int | None = Field(None, ge=1, le=10**9, description="Optimizer steps, instead of epochs.")
    micro_batch_size: int = Field(1, ge=1, description="Rows in one forward pass on one device.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Micro-batches in one optimizer step on one device.")
    seed: int = Field(
        42, ge=0, le=2**63 - 1, description="Model initialisation, batch plan and dropout get separate streams from it."
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Clip the gradient's L2 norm to this; null: no clipping."
    )
    eval_steps: int | None = Field(
        None, ge=1, description="Evaluate every so many steps; at the end alone when not set."
    )
    logging_steps: int = Field(
        1, ge=1, description="Report metrics every so many steps, averaged over the steps since the report before."
    )
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="What one device can do, in TFLOP/s, for MFU; measured by a matrix product when not set.",
    )
    average_tokens_across_devices: bool = Field(
        True, description="Divide by the count of all devices (exact); off: each device by its own, then average."
    )
    float32_gradients: bool = Field(
        True, description="Accumulate half-precision gradients in float32 over the window (2 bytes more a parameter)."
    )
    max_skipped_steps: int = Field(
        3, ge=0, description="Stop after so many steps in a row whose loss or gradient is not finite."
    )


SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class CheckpointSection(Section):
    """What is saved when, and what a run goes on from."""

    save_steps: int | None = Field(
        None, ge=1, description="Save a checkpoint every so many steps, and at the last one."
    )
    save_every: str | None = Field(
        "30m",
        pattern=r"^\d+(\.\d+)?[smh]$",
        description="Save a checkpoint whenever so much time has gone by (90s, 10m, 2h); null: by save_steps alone.",
    )
    save_total_limit: int | None = Field(
        3, ge=1, description="Keep the newest so many checkpoints, and the best by evaluation; null keeps all."
    )
    save_last: bool = Field(True, description="Save the final model in final/, which no limit deletes.")
    max_shard_size: str = Field("5GB", pattern=r"^\d+(\.\d+)?(KB|MB|GB)$", description="Largest safetensors file.")
    background: bool = Field(
        True, description="Write files while training goes on, where memory holds a copy of the state."
    )
    resume: str = Field(
        "auto",
        min_length=1,
        description="auto: from output_dir's newest valid checkpoint, if any; never; or a checkpoint's directory.",
    )
    allow: list[str] = Field(
        [],
        description="Differences that a resume accepts although they change the numbers, such as optimizer.lr or data.",
    )

    @property
    def save_every_seconds(self) -> float | None:
        """`save_every` in seconds."""
        return None if self.save_every is None else float(self.save_every[:-1]) * SECONDS[self.save_every[-1]]


class RunConfig(Section):
    """One run of one stage."""

    stage: Choice = Field(description="The training stage.")
    model: ModelSection = Field(description="The model and its tokenizer.")
    data: DataSection = Field(description="Training and evaluation data.")
    adapter: Choice | None = Field(None, description="A parameter-efficient adapter; null: full fine-tuning.")
    loss: Choice | None = Field(None, description="The loss; the stage's default when not set.")
    optimizer: Choice = Field(PluginChoice(name="adamw"), description="The optimizer.")
    scheduler: Choice = Field(PluginChoice(name="cosine"), description="The learning-rate schedule.")
    engine: Choice = Field(PluginChoice(name="torch"), description="What owns devices, backward and step.")
    train: TrainSection = Field(TrainSection(), description="Batch sizes, length, seed.")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="What is saved when.")
    loggers: list[Choice] = Field(
        [PluginChoice(name=name) for name in DEFAULT_LOGGERS],
        description="Loggers, called in this order.",
    )
    output_dir: str = Field(min_length=1, description="Where the run writes.")
