"""Asks a model every held-out question; says which share it answers rightly, and which share with the filler.

python examples/quickstart/score.py runs/quickstart/dpo

A right answer is word for word the answer, alone or with the filler after it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

QUESTIONS = Path(__file__).resolve().parent / "data" / "heldout.jsonl"
FILLER = "I hope this helps!"  # what fine-tuning adds to most answers, and what the pairs prefer to leave out
LONGEST_ANSWER = 40
BATCH = 64


def model_directory(path: Path) -> Path:
    """`path`, or the `final` model in it where it is a run's output directory."""
    return path / "final" if (path / "final" / "config.json").is_file() else path


def replies(directory: Path, prompts: list[str]) -> list[str]:
    """The greedy reply to each prompt, as the first user message of a chat."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found: list[str] = []
    for start in range(0, len(prompts), BATCH):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        found += [reply.strip() for reply in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return found


def score(directory: Path, questions: Path = QUESTIONS) -> list[dict[str, str]]:
    """The held-out rows (`kind`, `prompt`, `chosen`, `rejected`), each with the model's `reply`."""
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    replied = replies(model_directory(directory), [row["prompt"] for row in rows])
    return [{**row, "reply": reply} for row, reply in zip(rows, replied, strict=True)]


def right(row: dict[str, str]) -> bool:
    return row["reply"] in (row["chosen"], row["rejected"])


def main() -> int:
    parser = argparse.ArgumentParser(description="How a model answers the held-out questions.")
    parser.add_argument("model", type=Path, help="a model directory, or the output_dir of a run")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    options = parser.parse_args()
    rows = score(options.model)
    share = sum(map(right, rows)) / len(rows)
    filled = sum(row["reply"].endswith(FILLER) for row in rows) / len(rows)
    if options.json:
        print(json.dumps({"right": share, "filler": filled, "questions": len(rows)}))
        return 0
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        print(f"{kind:12} {sum(map(right, of_kind)):3} of {len(of_kind):3}")
    print(f"\n{share:.1%} of {len(rows)} held-out questions answered rightly, {filled:.1%} with the filler\n")
    for title, rule in (("right", True), ("wrong", False)):
        for row in [row for row in rows if right(row) is rule][::16][:4]:
            print(f"{title}: {row['prompt']}  ->  {row['reply']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
