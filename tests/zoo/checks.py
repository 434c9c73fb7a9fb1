"""What is compared for each model type: a few runs, each of which covers several things."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from zoo.bench import PROMPT, Bench, Outcome, bumble, make_start_model, run
from zoo.model_types import ModelType, tiny_config
from zoo.plain_loop import (
    continue_greedily,
    difference,
    load_plain,
    mean_loss,
    relative,
    train,
    train_pairs,
)

STEPS = 2
LIMITS = {
    "packed": 2e-5,
    "packed weights": 5e-3,
    "bf16": 0.02,
    "sft": 2e-5,
    "sft weights": 5e-3,
    "lora": 2e-5,
    "lora weights": 5e-3,
    "dpo at ln 2": 2e-6,
    "dpo": 5e-5,
    "reload": 2e-5,
}
"""The largest difference that is accepted: of losses relative, of weights as a share of how far training moved them."""


class RefusedRun(Exception):
    """A run that ended with an error: its message, and all that it printed."""


def check_type(bench: Bench, row: ModelType) -> dict[str, Any]:
    """All comparisons of one type. The result: `documents` (how they are kept apart), `attention`, `differences` by
    name of the comparison, and `without` (what this type does not have).

    Raises RefusedRun where a run ends with an error, and AssertionError where generated text or saved names differ.
    """
    start = make_start_model(bench, row)
    result: dict[str, Any] = {"differences": {}, "without": []}
    for check in (_packed, _half_precision, _chats, _low_rank, _pairs):
        check(bench, row, start, result)
    return result


def problems(row: ModelType, result: dict[str, Any]) -> list[str]:
    """What of a result is wrong: differences beyond `LIMITS`, documents not kept apart as the row states."""
    differences = result["differences"]
    wanted = {name: limit for name, limit in LIMITS.items() if row.trains_pairs or not name.startswith("dpo")}
    found = [f"{name} {differences[name]:.1e}" for name, limit in wanted.items() if not differences[name] <= limit]
    if result["documents"].startswith("one per") != row.one_per_pass:
        found.append(f"documents {result['documents']}")
    return found


def refusal(bench: Bench, row: ModelType) -> str:
    """The line with which a run of this type ends before training. It needs no weights."""
    start = bench.directory / row.name / "start"
    tiny_config(row).save_pretrained(start)
    bench.tokenizer.save_pretrained(start)
    return run(bench, start, "refused", stage="pretrain", rows="text.jsonl", steps=1).error or "it trains"


def _packed(bench: Bench, row: ModelType, start: Path, result: dict[str, Any]) -> None:
    """Packed documents, with gradient checkpointing where the type has it."""
    settings = {
        "stage": "continue_pretrain",
        "rows": "text.jsonl",
        "data": {"packing": True},
        "train": {"micro_batch_size": 1},
    }
    outcome = _run(bench, start, "packed", **settings, model={"gradient_checkpointing": True}, code="BC039")
    if outcome is None:
        result["without"].append("gradient checkpointing")
        outcome = _run(bench, start, "packed", **settings)
    result["documents"] = outcome.feature("documents") or "together"
    result["attention"] = outcome.feature("attention")
    model = load_plain(start, row.plain_attention)
    _compare_weights(result, "packed", outcome, model, lambda: train(model, bench.texts, STEPS))


def _half_precision(bench: Bench, row: ModelType, start: Path, result: dict[str, Any]) -> None:
    outcome = _run(bench, start, "bf16", stage="continue_pretrain", rows="text.jsonl", steps=1, model={"dtype": "bf16"})
    plain = mean_loss(load_plain(start, row.plain_attention, torch.bfloat16), bench.texts)
    result["differences"]["bf16"] = relative(outcome.losses, [plain])


def _chats(bench: Bench, row: ModelType, start: Path, result: dict[str, Any]) -> None:
    """Supervised fine-tuning of ragged rows; then the final model generates, by itself and in transformers."""
    outcome = _run(bench, start, "sft", stage="sft", rows="chat.jsonl")
    model = load_plain(start, row.plain_attention)
    _compare_weights(result, "sft", outcome, model, lambda: train(model, bench.chats, STEPS))
    final = load_plain(outcome.directory / "final", row.plain_attention)
    result["differences"]["reload"] = relative([mean_loss(final, bench.chats)], [mean_loss(model, bench.chats)])
    ids = bench.tokenizer(PROMPT, add_special_tokens=False).input_ids
    plain = continue_greedily(final, ids, 6, bench.tokenizer.eos_token_id)
    status, text = bumble("generate", str(outcome.directory), "--prompt", PROMPT, "--max-new-tokens", "6", "--json")
    assert not status, text
    answer = next(json.loads(line)["text"] for line in text.splitlines() if line.startswith("{"))
    assert answer == bench.tokenizer.decode(plain, skip_special_tokens=True)


def _low_rank(bench: Bench, row: ModelType, start: Path, result: dict[str, Any]) -> None:
    """LoRA from an adapter that PEFT made, A and B random."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=list(row.lora_modules) or "all-linear",
        exclude_modules=["router"],  # one that returns a tuple cannot be adapted
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(load_plain(start, row.plain_attention), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    adapter = start.parent / "adapter"
    model.save_pretrained(adapter)
    outcome = _run(bench, start, "lora", stage="sft", rows="chat.jsonl", adapter={"name": "lora", "path": str(adapter)})
    before = load_file(adapter / "adapter_model.safetensors")
    losses = train(model, bench.chats, STEPS)
    model.save_pretrained(start.parent / "plain-adapter")
    plain = load_file(start.parent / "plain-adapter" / "adapter_model.safetensors")
    own = load_file(outcome.directory / "final" / "adapter_model.safetensors")
    assert own.keys() == plain.keys()
    result["differences"] |= {
        "lora": relative(outcome.losses, losses),
        "lora weights": difference(own, plain, before),
    }


def _pairs(bench: Bench, row: ModelType, start: Path, result: dict[str, Any]) -> None:
    """DPO: the first loss is ln 2, since the policy is its own reference."""
    outcome = _run(bench, start, "dpo", stage="dpo", rows="pairs.jsonl", code=None if row.trains_pairs else "BC098")
    if outcome is None:
        result["without"].append("DPO (BC098)")
        return
    model = load_plain(start, row.plain_attention)
    plain = train_pairs(model, bench.pairs, STEPS)
    result["differences"] |= {
        "dpo at ln 2": abs(outcome.losses[0] - math.log(2)),
        "dpo": relative(outcome.losses, plain),
    }


def _compare_weights(
    result: dict[str, Any], name: str, outcome: Outcome, model: Any, train_plainly: Callable[[], list[float]]
) -> None:
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    losses = train_plainly()
    plain = {key: value.detach() for key, value in model.named_parameters()}
    own = dict(load_plain(outcome.directory / "final", "eager").named_parameters())
    result["differences"] |= {
        name: relative(outcome.losses, losses),
        f"{name} weights": difference(own, plain, before),
    }


def _run(
    bench: Bench,
    start: Path,
    name: str,
    *,
    rows: str,
    steps: int = STEPS,
    code: str | None = None,
    **settings: Any,
) -> Any:
    """The run's outcome; None where it ends with `code`. Raises RefusedRun for any other error."""
    outcome = run(bench, start, name, rows=rows, steps=steps, **settings)
    if outcome.error is None:
        return outcome
    if code is not None and outcome.error.startswith(code):
        return None
    raise RefusedRun(f"{name}: {outcome.error}\n{outcome.output}")
