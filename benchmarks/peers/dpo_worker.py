"""One run of TRL's DPOTrainer on the prepared pairs, in their order.

    python dpo_worker.py SETTING.json full|lora VARIANT STEPS OUT.json

STEPS: how many optimizer steps (0: all). Writes seconds, loss and reward margin of each step, and the seconds of the
reference's pass where it is one of its own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from hf_worker import Clock, arguments, in_order
from pairs import BETA, LORA_ALPHA, LORA_RANK, PAIR_OPTIMIZER
from setting import MAX_LENGTH
from trl import DPOConfig, DPOTrainer

PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")


def main() -> None:
    setting = json.loads(Path(sys.argv[1]).read_text())
    method, variant, steps, out = sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5])
    torch.set_num_threads(setting["threads"])
    directory = Path(setting["directory"])
    lines = (directory / "peers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines][: steps * setting["batch_size"] or None]
    dtype = torch.bfloat16 if variant.startswith("bf16-weights") else torch.float32
    clock = PairClock()
    trainer = InOrder(
        model=transformers.AutoModelForCausalLM.from_pretrained(directory / "model", dtype=dtype),
        args=config(setting, variant, steps),
        train_dataset=Dataset.from_list(
            [{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in rows]
        ),
        processing_class=transformers.AutoTokenizer.from_pretrained(directory / "model"),
        callbacks=[clock],
        peft_config=lora() if method == "lora" else None,
    )
    if trainer.model.is_gradient_checkpointing:
        raise SystemExit("TRL recomputes activations, which was to be off")
    require_same_tokens(trainer, rows)
    if method == "lora":
        take_saved_adapter(trainer.model, directory / "adapter")
    trainer.train()
    found = {
        "variant": variant,
        "seconds": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
        "losses": clock.losses,
        "margins": clock.margins,
        "reference_seconds": trainer.reference_seconds,
        "peak_cuda_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    }
    out.write_text(json.dumps(found))


class InOrder(in_order(DPOTrainer)):  # type: ignore[misc]
    """Takes its pairs as they come, and times the reference's pass before training."""

    reference_seconds = 0.0

    def _precompute_ref_logps(self, *given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        found = super()._precompute_ref_logps(*given, **named)
        self.reference_seconds += time.perf_counter() - started
        return found


class PairClock(Clock):
    """Keeps the reward margins too."""

    def __init__(self) -> None:
        super().__init__()
        self.margins: list[float] = []

    def on_log(
        self, _arguments: Any, _state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        super().on_log(_arguments, _state, _control, logs)
        if logs and "rewards/margins" in logs:
            self.margins.append(float(logs["rewards/margins"]))


def config(setting: dict[str, Any], variant: str, steps: int) -> DPOConfig:
    """TRL's arguments; dropout is off by its default."""
    given = {**arguments(setting, variant, steps), "learning_rate": PAIR_OPTIMIZER["lr"]}
    precompute = variant.endswith("+precompute")
    return DPOConfig(**given, beta=BETA, max_length=MAX_LENGTH, precompute_ref_log_probs=precompute)


def lora() -> Any:
    """The same layers as the saved adapter's."""
    from peft import LoraConfig

    return LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def take_saved_adapter(model: Any, directory: Path) -> None:
    """Puts the saved A and B in place of the trainer's own. Loaded in this way, rather than given to the trainer as an
    adapter, they leave it the cheapest reference: the model with its adapter switched off."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(directory / "adapter_model.safetensors")
    if set(saved) != set(get_peft_model_state_dict(model)):
        raise SystemExit("TRL adapts other modules than the saved adapter")
    set_peft_model_state_dict(model, saved)


def require_same_tokens(trainer: DPOTrainer, rows: list[dict[str, Any]]) -> None:
    """Fails unless TRL's prompts and completions are BumbleCore's, and its batches hold these alone: nothing is cut,
    and all of a completion and nothing else is trained."""
    data = trainer.train_dataset
    if len(data) != len(rows):
        raise SystemExit(f"TRL keeps {len(data)} of {len(rows)} pairs")
    for index, row in enumerate(rows):
        seen = data[index]
        if any(list(seen[part]) != row[part] for part in PARTS):
            raise SystemExit(f"pair {index}: TRL's tokens are not BumbleCore's")
        batch = trainer.data_collator([{part: list(seen[part]) for part in PARTS}])
        for at, side in enumerate(PARTS[1:]):
            real = batch["attention_mask"][at].bool()
            ids, trained = batch["input_ids"][at][real], batch["completion_mask"][at][real].bool()
            if ids.tolist() != row["prompt_ids"] + row[side] or ids[trained].tolist() != row[side]:
                raise SystemExit(f"pair {index}: TRL trains other tokens than BumbleCore")


if __name__ == "__main__":
    main()
