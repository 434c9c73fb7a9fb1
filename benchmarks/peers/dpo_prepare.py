"""Makes what BumbleCore and TRL share on preference pairs: tokenizer, initial weights (of the model, and of LoRA's A
and B), pairs in BumbleCore's order, BumbleCore's configs.

    python dpo_prepare.py SETTING.json

Each pair is written with the tokens that BumbleCore trains on; `dpo_worker.py` compares them with TRL's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pairs import BETA, LORA_ALPHA, LORA_RANK, PAIR_OPTIMIZER
from prepare import make_model, make_tokenizer, prepared_run, steps_of, write_config, write_lines
from rows import MADE_ROWS_OF_TEXT, Pair, make_pairs, read_pairs
from setting import MAX_LENGTH, SEED, model_settings


def main() -> None:
    setting = json.loads(Path(sys.argv[1]).read_text())
    directory, wanted = Path(setting["directory"]), setting["rows"]
    pairs = read_pairs(Path(setting["data"])) if setting["data"] else make_pairs(MADE_ROWS_OF_TEXT + wanted, seed=SEED)
    model = model_settings(setting["preset"], setting["vocabulary"])
    tokenizer = make_tokenizer([chat for pair in pairs for chat in pair.values()], model["vocab_size"])
    tokenizer.save_pretrained(directory / "model")
    parameters = make_model(directory / "model", model)
    adapter_parameters = make_adapter(directory / "model", directory / "adapter")

    fitting = [pair for pair in pairs if longest(tokenizer, pair) <= MAX_LENGTH][:wanted]
    if len(fitting) < wanted:
        raise SystemExit(f"{setting['data']} holds {len(fitting)} pairs of at most {MAX_LENGTH} tokens, not {wanted}")
    write_lines(directory / "rows.jsonl", list(fitting))
    config = write_configs(directory, setting)
    prepared = prepared_run(config)
    if len(prepared.store) != wanted:
        raise SystemExit(f"BumbleCore keeps {len(prepared.store)} of {wanted} pairs")
    steps = steps_of(prepared)
    tokens = [parts(prepared.store.example(row)) for row in range(wanted)]
    write_lines(directory / "peers.jsonl", [{**fitting[row], **tokens[row]} for step in steps for row in step])
    lengths = [sum(map(len, part.values())) for part in tokens]
    facts = {
        "parameters": parameters,
        "adapter_parameters": adapter_parameters,
        "model": model,
        "tokenizer_size": len(tokenizer),
        "step_pairs": [len(step) for step in steps],
        "step_tokens": [int(sum(prepared.store.lengths[row] for row in step)) for step in steps],
        "tokens_of_pairs": sum(lengths),
        "tokens_of_completions": sum(
            length - len(part["prompt_ids"]) for length, part in zip(lengths, tokens, strict=True)
        ),
    }
    (directory / "facts.json").write_text(json.dumps(facts))


def make_adapter(model: Path, directory: Path) -> int:
    """Saves a fresh LoRA of every linear layer but the head, B being zero; returns the number of its parameters."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    adapted.save_pretrained(directory)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def longest(tokenizer: Any, pair: Pair) -> int:
    """Tokens of the longer sequence."""
    sides = [pair["prompt"] + pair[side] for side in ("chosen", "rejected")]
    return max(len(tokenizer.apply_chat_template(side, tokenize=True, return_dict=True)["input_ids"]) for side in sides)


def write_configs(directory: Path, setting: dict[str, Any]) -> Path:
    """A config of each method; returns that of full fine-tuning."""
    changes = {
        "stage": "dpo",
        "loss": {"name": "sigmoid", "beta": BETA},
        "optimizer": {"name": "adamw", **PAIR_OPTIMIZER},
    }
    adapter = {"name": "lora", "path": str(directory / "adapter")}
    write_config(directory, setting, name="lora.yaml", changes={**changes, "adapter": adapter})
    return write_config(directory, setting, name="full.yaml", changes=changes)


def parts(example: Any) -> dict[str, list[int]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of what BumbleCore trains on; fails unless each completion is
    trained from its beginning to the sequence's end, as TRL's is, after the same prompt."""
    found = {}
    prompts = []
    for side in ("chosen", "rejected"):
        ids, spans = example[f"{side}_ids"].tolist(), example[f"{side}_spans"].tolist()
        if len(spans) != 2 or spans[1] != len(ids):
            raise SystemExit(f"BumbleCore trains the tokens {spans} of {len(ids)}, not all after the prompt")
        prompts.append(ids[: spans[0]])
        found[f"{side}_ids"] = ids[spans[0] :]
    if prompts[0] != prompts[1]:
        raise SystemExit("BumbleCore's prompts before chosen and rejected differ")
    return {"prompt_ids": prompts[0], **found}


if __name__ == "__main__":
    main()
