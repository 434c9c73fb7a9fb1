"""What all model types of the zoo share: a tokenizer, rows, and runs of `bumble` in this process."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bumblecore_core.cli import main
from workbench import make_tokenizer, sentence, write_config
from zoo.model_types import ModelType, tiny_config
from zoo.plain_loop import CLIP, LEARNING_RATE, MOMENTUM, Row

TEXT_WORDS = (3, 12, 5, 9, 1, 7)
MAX_LENGTH = 64
PROMPT = "the cat sat"


@dataclass(frozen=True)
class Bench:
    """`directory` with the tokenizer and the data, and the rows as the plain loop reads them."""

    directory: Path
    tokenizer: Any
    texts: list[Row]
    chats: list[Row]
    pairs: list[tuple[Row, Row]]


@dataclass(frozen=True)
class Outcome:
    """What a run reported: its error (code and message), or losses and the summary's features."""

    error: str | None
    output: str
    directory: Path
    losses: list[float] = field(default_factory=list)

    def feature(self, name: str) -> str | None:
        """The value of a line of the start summary; None where it has no such line."""
        lines = (line.strip().partition("  ") for line in self.output.splitlines())
        return next((value.strip() for key, _, value in lines if key == name), None)


def make_bench(directory: Path) -> Bench:
    """Ragged texts, chats and pairs, each fewer than `MAX_LENGTH` tokens and most beyond the windows of the zoo."""
    from transformers import AutoTokenizer

    make_tokenizer(directory / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(directory / "tokenizer")
    texts = [sentence(at, words) for at, words in enumerate(TEXT_WORDS)]
    chats = [_turns(sentence(at, 1 + at % 3), sentence(at + 1, 2 + at * 3 % 7)) for at in range(5)]
    pairs = [
        {"prompt": sentence(at, 2), "chosen": sentence(at + 1, 1 + at * 2), "rejected": sentence(at + 2, 4)}
        for at in range(3)
    ]
    _write(directory / "text.jsonl", [{"text": text} for text in texts])
    _write(directory / "chat.jsonl", [{"messages": chat} for chat in chats])
    _write(directory / "pairs.jsonl", pairs)
    return Bench(
        directory=directory,
        tokenizer=tokenizer,
        texts=[_text_row(tokenizer, text) for text in texts],
        chats=[_chat_row(tokenizer, chat) for chat in chats],
        pairs=[
            tuple(_chat_row(tokenizer, _turns(pair["prompt"], pair[answer])) for answer in ("chosen", "rejected"))  # type: ignore[misc]
            for pair in pairs
        ],
    )


def make_start_model(bench: Bench, row: ModelType) -> Path:
    """A directory with a model whose every weight differs from its initial value, so that each part matters."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(row), attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        biases = [buffer for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
        for tensor in (*model.parameters(), *biases):
            tensor.add_(0.05 * torch.randn_like(tensor))
    directory = bench.directory / row.name.replace(" ", "-") / "start"
    model.save_pretrained(directory)
    bench.tokenizer.save_pretrained(directory)
    return directory


def run(bench: Bench, start: Path, name: str, *, stage: str, rows: str, steps: int, **changes: Any) -> Outcome:
    """A run of `steps` epochs, each one optimizer step over all rows. `changes`: of the sections of the config."""
    output = start.parent / name
    settings: dict[str, Any] = {
        "stage": stage,
        "model": {"path": str(start), "dtype": "fp32"},
        "data": {
            "path": str(bench.directory / rows),
            "max_length": MAX_LENGTH,
            "cache_dir": str(bench.directory / "cache"),
        },
        "optimizer": {"name": "sgd", "lr": LEARNING_RATE, "momentum": MOMENTUM},
        "scheduler": "constant",
        "train": {
            "epochs": steps,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "max_grad_norm": CLIP,
            "peak_tflops": 1,
        },
        "loggers": ["metrics_json"],
        "output_dir": str(output),
    }
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values}
    status, text = bumble("run", str(write_config(start.parent / f"{name}.yaml", **settings)))
    if status:
        errors = [line.strip() for line in text.splitlines() if line.strip().startswith("BC")]
        return Outcome(errors[-1] if errors else f"exit code {status}", text, output)
    history = json.loads((output / "metrics.json").read_text())
    return Outcome(None, text, output, [entry["loss"] for entry in history])


def bumble(*arguments: str) -> tuple[int, str]:
    """(exit code, output) of the command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(list(arguments))
        except SystemExit as ended:
            return int(ended.code or 0), output.getvalue()
    return 0, output.getvalue()


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _text_row(tokenizer: Any, text: str) -> Row:
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return Row(ids, [True] * len(ids))


def _chat_row(tokenizer: Any, messages: list[dict[str, str]]) -> Row:
    made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True)
    last = max(at for at, trained in enumerate(made["assistant_masks"]) if trained) + 1
    return Row(made["input_ids"][:last], [bool(trained) for trained in made["assistant_masks"][:last]])
