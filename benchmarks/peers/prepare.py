"""Makes what all frameworks share: tokenizer, initial weights, rows in BumbleCore's order, BumbleCore's config.

    python prepare.py SETTING.json

Every row is tokenized by the chat template and compared with what BumbleCore trains on, so that all of them see the
same tokens, the same trained tokens, and the same rows in each step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rows import MADE_ROWS_OF_TEXT, Chat, make_chats, read_chats
from setting import (
    CHAT_TEMPLATE,
    MAX_GRAD_NORM,
    MAX_LENGTH,
    OPTIMIZER,
    SEED,
    SPECIAL_TOKENS,
    model_settings,
)

Encoded = dict[str, list[int]]


def main() -> None:
    setting = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(setting["directory"])
    wanted = setting["rows"]
    chats = read_chats(Path(setting["data"])) if setting["data"] else make_chats(MADE_ROWS_OF_TEXT + wanted, seed=SEED)
    model = model_settings(setting["preset"], setting["vocabulary"])
    tokenizer = make_tokenizer(chats, model["vocab_size"])
    tokenizer.save_pretrained(directory / "model")
    parameters = make_model(directory / "model", model)

    encoded = [(chat, encode(tokenizer, chat)) for chat in chats]
    fitting = [(chat, row) for chat, row in encoded if len(row["input_ids"]) <= MAX_LENGTH][:wanted]
    if len(fitting) < wanted:
        raise SystemExit(f"{setting['data']} holds {len(fitting)} rows of at most {MAX_LENGTH} tokens, not {wanted}")
    write_lines(directory / "rows.jsonl", [{"messages": chat} for chat, _ in fitting])
    config = write_config(directory, setting)
    steps = planned_steps(config, [row for _, row in fitting])
    ordered = [{**fitting[row][1], "messages": fitting[row][0]} for step in steps for row in step]
    write_lines(directory / "peers.jsonl", ordered)
    facts = {
        "parameters": parameters,
        "model": model,
        "tokenizer_size": len(tokenizer),
        "step_tokens": [sum(len(fitting[row][1]["input_ids"]) for row in step) for step in steps],
        "step_trained_tokens": [sum(sum(fitting[row][1]["assistant_masks"]) for row in step) for step in steps],
    }
    (directory / "facts.json").write_text(json.dumps(facts))


def make_tokenizer(chats: list[Chat], vocabulary: int) -> Any:
    """A byte-level BPE of the rows' text. Its vocabulary may be far smaller than the model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, 32_000),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((message["content"] for chat in chats for message in chat), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=SPECIAL_TOKENS[2], pad_token=SPECIAL_TOKENS[0], model_max_length=MAX_LENGTH
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(directory: Path, settings: dict[str, Any]) -> int:
    """Saves randomly initialised float32 weights; returns their number."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(Qwen3Config(**settings))
    model.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def encode(tokenizer: Any, chat: Chat) -> Encoded:
    """`input_ids` and `assistant_masks` (1: trained) of the chat template."""
    found = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return {"input_ids": list(found["input_ids"]), "assistant_masks": list(found["assistant_masks"])}


def write_config(
    directory: Path, setting: dict[str, Any], *, name: str = "bumble.yaml", changes: dict[str, Any] | None = None
) -> Path:
    """BumbleCore's run: its defaults, but for what the comparison fixes. `changes`: sections in place of those here."""
    loggers = ["progress", "log_file", "metrics_json"]
    config = {
        "stage": "sft",
        "model": {"path": str(directory / "model"), "dtype": setting["dtype"]},
        "data": {
            "path": str(directory / "rows.jsonl"),
            "max_length": MAX_LENGTH,
            "cache_dir": str(directory / "cache"),
            "num_proc": 0,
        },
        "optimizer": {"name": "adamw", **OPTIMIZER},
        "scheduler": "constant",
        "train": {"micro_batch_size": setting["batch_size"], "seed": SEED, "max_grad_norm": MAX_GRAD_NORM},
        "checkpoint": {"save_last": False},
        "loggers": [*loggers, "cuda_peak"] if setting["on_gpu"] else loggers,
        "output_dir": str(directory / "run"),
        **(changes or {}),
    }
    path = directory / name
    path.write_text(yaml.safe_dump(config))
    return path


def prepared_run(config: Path) -> Any:
    """What BumbleCore makes of a config before it loads the weights: token shards and batch plan."""
    from bumblecore_core.config.resolve import load_run
    from bumblecore_core.registry import PluginSwitches, load_registry
    from bumblecore_core.run.assemble import prepare

    switches = PluginSwitches(builtins_only=True)
    registry = load_registry(switches)
    resolved = load_run(config, ["loggers=[]"], registry)
    return prepare(resolved, registry, switches, world_size=1, progress=False)


def steps_of(prepared: Any) -> list[list[int]]:
    """The rows of each optimizer step."""
    return [list(window.micro_batches[0][0].rows) for window in prepared.plan.windows()]


def planned_steps(config: Path, rows: list[Encoded]) -> list[list[int]]:
    """The rows of each of BumbleCore's optimizer steps; fails where it trains on other tokens than the template's."""
    prepared = prepared_run(config)
    if len(prepared.store) != len(rows):
        raise SystemExit(f"BumbleCore keeps {len(prepared.store)} of {len(rows)} rows")
    for index, row in enumerate(rows):
        example = prepared.store.example(index)
        mask = np.zeros(len(row["input_ids"]), dtype=int)
        for start, end in example["spans"].reshape(-1, 2):
            mask[start:end] = 1
        if example["input_ids"].tolist() != row["input_ids"] or mask.tolist() != row["assistant_masks"]:
            raise SystemExit(f"row {index}: BumbleCore's tokens are not the chat template's")
    return steps_of(prepared)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
