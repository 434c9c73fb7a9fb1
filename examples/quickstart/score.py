"""Asks a model every held-out question and says which share it answers word for word.

python examples/quickstart/score.py runs/quickstart/sft
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

QUESTIONS = Path(__file__).resolve().parent / "data" / "heldout.jsonl"
LONGEST_ANSWER = 32
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
    """The held-out rows (`kind`, `prompt`, `answer`), each with the model's `reply`."""
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    answered = replies(model_directory(directory), [row["prompt"] for row in rows])
    return [{**row, "reply": reply} for row, reply in zip(rows, answered, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description="The share of held-out questions that a model answers word for word.")
    parser.add_argument("model", type=Path, help="a model directory, or the output_dir of a run")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    options = parser.parse_args()
    rows = score(options.model)
    right = {kind: [row["reply"] == row["answer"] for row in rows if row["kind"] == kind] for kind in _kinds(rows)}
    share = sum(map(sum, right.values())) / len(rows)
    if options.json:
        print(json.dumps({"share": share, "questions": len(rows)}))
        return 0
    for kind, marks in right.items():
        print(f"{kind:12} {sum(marks):3} of {len(marks):3}")
    print(f"\n{share:.1%} of {len(rows)} held-out questions answered word for word\n")
    for title, rule in (("right", True), ("wrong", False)):
        for row in [row for row in rows if (row["reply"] == row["answer"]) is rule][::16][:4]:
            print(f"{title}: {row['prompt']}  ->  {row['reply']}")
    return 0


def _kinds(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["kind"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
