"""One run of transformers' Trainer or TRL's SFTTrainer on the prepared rows, in their order.

    python hf_worker.py SETTING.json trainer|trl VARIANT STEPS OUT.json

STEPS: how many optimizer steps (0: all). Writes seconds and loss of each step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from setting import MAX_GRAD_NORM, MAX_LENGTH, OPTIMIZER, SEED
from torch.utils.data import SequentialSampler


def main() -> None:
    setting = json.loads(Path(sys.argv[1]).read_text())
    framework, variant, steps, out = sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    torch.set_num_threads(setting["threads"])
    directory = Path(setting["directory"])
    rows = [json.loads(line) for line in (directory / "peers.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory / "model")
    dtype = torch.bfloat16 if variant.startswith("bf16-weights") else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(directory / "model", dtype=dtype)
    clock = Clock()
    make = trl_trainer if framework == "trl" else plain_trainer
    trainer = make(model, tokenizer, rows, arguments(setting, variant, steps), clock, variant)
    if trainer.model.is_gradient_checkpointing:
        raise SystemExit("the peer recomputes activations, which was to be off")
    trainer.train()
    cuda_peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    found = {"variant": variant, "seconds": seconds, "losses": clock.losses, "peak_cuda_bytes": cuda_peak}
    out.write_text(json.dumps(found))


class Clock(transformers.TrainerCallback):
    """Times steps from the end of one to the end of the next, so that loading and logging count as in BumbleCore."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends = [time.perf_counter()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(
        self, _arguments: Any, _state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def arguments(setting: dict[str, Any], variant: str, steps: int) -> dict[str, Any]:
    """What both trainers get; the optimizer is their default, fused AdamW."""
    return {
        "output_dir": str(Path(setting["directory"]) / "peer"),
        "per_device_train_batch_size": setting["batch_size"],
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "max_steps": steps or -1,
        "learning_rate": OPTIMIZER["lr"],
        "weight_decay": OPTIMIZER["weight_decay"],
        "adam_epsilon": OPTIMIZER["eps"],
        "max_grad_norm": MAX_GRAD_NORM,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "bf16": variant.startswith("autocast"),
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not setting["on_gpu"],
        "dataloader_num_workers": 2 if setting["on_gpu"] else 0,
        "seed": SEED,
    }


def in_order(trainer: type) -> type:
    """The trainer class, taking its rows as they come."""

    class InOrder(trainer):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    return InOrder


def plain_trainer(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], given: dict[str, Any], clock: Clock, variant: str
) -> Any:
    """transformers' Trainer with its own padding collator; labels are the assistant's tokens."""
    features = [
        {
            "input_ids": row["input_ids"],
            "labels": [
                token if trained else -100
                for token, trained in zip(row["input_ids"], row["assistant_masks"], strict=True)
            ],
        }
        for row in rows
    ]
    return in_order(transformers.Trainer)(
        model=model,
        args=transformers.TrainingArguments(**given),
        train_dataset=features,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, padding="longest"),
        callbacks=[clock],
    )


def trl_trainer(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], given: dict[str, Any], clock: Clock, variant: str
) -> Any:
    """TRL's SFTTrainer on the conversations; fails where it makes other tokens of them than the chat template."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    padding_free = variant.endswith("+padding-free")
    trainer = in_order(SFTTrainer)(
        model=model,
        args=SFTConfig(
            **given,
            max_length=None if padding_free else MAX_LENGTH,  # no prepared row is longer, and TRL takes not both
            assistant_only_loss=True,
            padding_free=padding_free,
            packing=False,
        ),
        train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    seen = [list(ids) for ids in trainer.train_dataset["input_ids"]]
    if seen != [row["input_ids"] for row in rows]:
        raise SystemExit("TRL's tokens are not the chat template's")
    return trainer


if __name__ == "__main__":
    main()
