"""Makes the small things that end-to-end tests run on: a tokenizer, a model config, data files, a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

TEXT = "the cat sat on a mat and saw two red birds fly over the old house by sea while rain fell softly all night"
WORDS = TEXT.split(" ")
EVAL_ROWS = 7  # ragged micro-batches of two or four, the last one short; more rows would only take time
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m['content'] }}"
    "<|im_end|>{% endgeneration %}\n{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer of about 300 tokens with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)


def make_model_config(directory: Path, **changes: Any) -> None:
    """A two-layer Qwen3-shaped config.json of about 30,000 parameters."""
    from transformers import Qwen3Config

    settings: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    Qwen3Config(**{**settings, **changes}).save_pretrained(directory)


def sentence(seed: int, length: int) -> str:
    """`length` words, different for each seed."""
    return " ".join(WORDS[(seed * 7 + at * (seed + 3)) % len(WORDS)] for at in range(length))


def make_text(path: Path, rows: int = 40) -> None:
    """Ragged text rows."""
    path.write_text("".join(json.dumps({"text": sentence(i, 4 + i * 5 % 23)}) + "\n" for i in range(rows)))


def make_chat(path: Path, rows: int = 40) -> None:
    """Alpaca rows with ragged answers."""
    chats = [
        {"instruction": sentence(i, 3 + i % 5), "input": "", "output": sentence(i + 1, 1 + i * 3 % 17)}
        for i in range(rows)
    ]
    path.write_text(json.dumps(chats))


def write_config(path: Path, **settings: Any) -> Path:
    """Writes a YAML config."""
    path.write_text(yaml.safe_dump(settings))
    return path


def workbench(directory: Path) -> Path:
    """`model/` (config and tokenizer), `text.jsonl` and `chat.json` in `directory`, and a few rows for evaluation in
    `eval.jsonl` and `eval.json`."""
    make_model_config(directory / "model")
    make_tokenizer(directory / "model")
    make_text(directory / "text.jsonl")
    make_chat(directory / "chat.json")
    make_text(directory / "eval.jsonl", rows=EVAL_ROWS)
    make_chat(directory / "eval.json", rows=EVAL_ROWS)
    return directory


def pretrain_settings(directory: Path, **train: Any) -> dict[str, Any]:
    """A pretraining run over `text.jsonl`."""
    return {
        "stage": "pretrain",
        "model": {"path": str(directory / "model"), "dtype": "fp32"},
        "data": {"path": str(directory / "text.jsonl"), "max_length": 64, "cache_dir": str(directory / "cache")},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "train": {"micro_batch_size": 4, "max_steps": 4, **train},
        "output_dir": str(directory / "pretrain"),
    }


def sft_settings(directory: Path, model: Path, **train: Any) -> dict[str, Any]:
    """A fine-tuning run over `chat.json`."""
    settings = pretrain_settings(directory, **train)
    settings["stage"] = "sft"
    settings["model"] = {"path": str(model), "dtype": "fp32"}
    settings["data"]["path"] = str(directory / "chat.json")
    settings["output_dir"] = str(directory / "sft")
    return settings
